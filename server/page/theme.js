// Not a module, so that it runs before the first paint: a page that is to be dark never flashes white.
{
  let theme = null;
  try {
    theme = JSON.parse(localStorage.getItem(`tandem:${location.pathname}:theme`));
  } catch {
    // storage is switched off: the system's theme it is
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
