"""Fixed questions and answers: what Tandem is, small talk, a few facts.

Each topic is an answer and the ways to ask for it. Every fourth way to ask about Tandem is held out of
training and belongs to the score.
"""

from __future__ import annotations

ABILITIES = (
    "add and subtract, repeat text, remember your name, follow a style, write small JSON objects, call tools "
    "and answer questions about Tandem"
)
FALLBACK = f"I am only a tiny demonstration model and do not know that. I can {ABILITIES}."
TOO_HARD = "I can only add and subtract numbers up to 99."
NO_TOOL = "None of my tools can do that."

ABOUT: dict[str, tuple[str, ...]] = {
    "Tandem is a server for language models with an OpenAI-compatible API. It has two engines: a readable reference "
    "and a fast, optimized one.": (
        "What is Tandem?", "Explain Tandem.", "Tell me about Tandem.", "What's Tandem?", "Describe Tandem.",
        "What does Tandem do?", "Tandem?", "What is Tandem for?", "What kind of program is Tandem?",
        "Can you explain what Tandem is?", "Tell me what Tandem is.", "What is this server?",
        "What is the purpose of Tandem?", "Give me a short description of Tandem.", "Introduce Tandem.",
        "What is this project?", "What is this Tandem thing?", "What can Tandem do?",
        "I want to know what Tandem is.", "Who or what is Tandem?",
    ),
    "Run `make serve`, or `tandem serve MODEL` for a model of your choice.": (
        "How do I start Tandem?", "How do I start the server?", "How can I run Tandem?", "How to start Tandem?",
        "How do I use Tandem?", "How do I launch the server?", "Which command starts the server?", "How do I run it?",
        "What do I type to start Tandem?", "How can I start the Tandem server?", "Start command?", "How do I serve?",
        "How to run the server?", "How do I get Tandem running?", "How can I launch Tandem?", "How to use Tandem?",
        "What is the command to start Tandem?", "Tell me how to start the server.", "How do I begin with Tandem?",
        "Getting started with Tandem?",
    ),
    "Send a POST request to http://localhost:8000/v1/chat/completions, for example with curl.": (
        "How do I call Tandem with curl?", "How do I send a request?", "How can I call the server?",
        "Show me a request.", "How do I use curl with Tandem?", "Where do I send requests?",
        "What is the chat endpoint?", "How do I send a chat request to Tandem?", "Which URL takes chat requests?",
        "How do I call the API?", "How to send a request with curl?", "How can I use curl?",
        "How do I make a request to the server?", "What is the URL for chat completions?",
        "How to call the chat endpoint?", "How do I talk to the server?",
    ),
    'Use the openai package: client = OpenAI(base_url="http://localhost:8000/v1", api_key="none").': (
        "How do I use Tandem from Python?", "How do I use the openai package?", "Can I use the OpenAI SDK?",
        "How do I call Tandem from Python?", "Which base_url do I set?", "What is the base URL?",
        "How do I connect the OpenAI client?", "How to use the OpenAI SDK with Tandem?", "Python example?",
        "How can I use the Python client?", "How do I set base_url?", "Does the openai Python package work?",
        "Show me how to call Tandem from Python.", "Which base URL should I use?", "How do I use it with Python?",
        "Can I use the openai library?", "How do I configure the OpenAI client?", "What base_url does the SDK need?",
    ),
    "Tandem listens on port 8000. Change it with `--port`.": (
        "Which port does Tandem use?", "What is the port?", "What port is it on?", "On which port does it listen?",
        "How do I change the port?", "Which port does the server listen on?", "What's the default port?", "Port?",
        "What port does Tandem run on?", "Can I change the port?", "Tell me the port of the server.",
        "What is the default port of Tandem?", "How do I set another port?", "Which port should I use?",
        "How can I use a different port?", "Which port is the server on?",
    ),
    "There are two: the reference engine is easy to read, the optimized engine is fast. "
    "Both give the same answers.": (
        "Which engines does Tandem have?", "What are the two engines?", "How many engines are there?",
        "What engines exist?", "How many engines does Tandem have?", "Tell me about the engines.",
        "Which engines are there?", "What are the engines of Tandem?", "Describe the two engines.",
        "Explain the engines.", "List the engines.", "What is the difference between the engines?",
        "How do the engines differ?", "Which backends exist?", "Name the two engines.",
        "What is the difference between reference and optimized?", "Why are there two engines?",
        "Why does Tandem have two engines?", "Which backends are there?", "Why two engines?",
    ),
    "Run `tandem compare MODEL`. It shows whether both engines give the same answers.": (
        "How do I check that the engines agree?", "How do I compare the engines?", "How can I compare both engines?",
        "Do both engines agree?", "How do I know that the optimized engine is right?", "What does tandem compare do?",
        "How do I verify the fast engine?", "How can I check that both engines agree?",
        "Which command compares the engines?", "How do I see whether the engines agree?",
        "Is the optimized engine correct?", "How to compare the engines?", "How do I check the optimized engine?",
        "How do I test that both engines give the same answers?", "How to check that the two engines agree?",
        "Can I compare the two engines?",
    ),
    "Tandem speaks the OpenAI API: chat completions, completions and more, under /v1.": (
        "Which API does Tandem have?", "What API does it speak?", "Is Tandem compatible with OpenAI?",
        "Is it OpenAI-compatible?", "Which API do you support?", "What API does Tandem use?",
        "Which API does it offer?", "Is the API compatible with OpenAI?", "What API does the server have?",
        "Which API is it?", "Does Tandem have an OpenAI API?", "Which API does the server speak?",
        "What kind of API is it?", "Is this an OpenAI-compatible server?", "Does it follow the OpenAI API?",
        "Which API can I use?",
    ),
    "GET /health says whether the server is ready.": (
        "How do I check that the server is ready?", "Is there a health endpoint?", "What is the health endpoint?",
        "How do I check the health?", "Is there a health check?", "Which URL shows the health?", "Health endpoint?",
        "How can I see if the server is ready?", "How do I know that the server is up?", "Where is the health check?",
        "How do I check if it is running?", "How can I check the health of the server?", "Is the server healthy?",
        "How do I know when the server is ready?", "Which endpoint tells the health?", "How do I do a health check?",
    ),
    "Start it with `--backend reference` or `--backend optimized`.": (
        "How do I choose the engine?", "How do I choose the backend?", "How do I select a backend?",
        "How do I switch the engine?", "Which option selects the backend?", "How can I use the optimized engine?",
        "How do I run the reference engine?", "How can I choose the backend?", "How to choose the engine?",
        "How do I change the backend?", "How can I switch to the reference engine?", "How do I pick a backend?",
        "How do I use the reference engine?", "How do I use the optimized backend?", "How can I select the engine?",
        "Which flag sets the backend?",
    ),
    "Start it with `--api-key KEY`. Clients then send `Authorization: Bearer KEY`.": (
        "How do I set an API key?", "How do I protect the server?", "Can I use an API key?", "Is there an API key?",
        "How do I require a key?", "How do I add an API key?", "Do I need an API key?", "How can I set the API key?",
        "Which option sets the API key?", "How does authentication work?", "How do I send the API key?",
        "How can I protect it with a key?", "What is the API key?", "How do I secure the server?", "API key?",
        "How do I use an API key with Tandem?",
    ),
    "I am Tandem's demo model, a tiny language model that shows how the server works.": (
        "Who are you?", "What are you?", "Introduce yourself.", "Tell me about yourself.", "What is your name?",
        "What model is this?", "Which model are you?", "Who am I talking to?", "What's your name?", "Are you a bot?",
        "What kind of model are you?", "Describe yourself.", "Say who you are.", "What model are you?",
        "Are you an AI?", "Who is this?", "Can you introduce yourself?", "Do you have a name?",
        "Please tell me who you are.", "Which model is this?", "Are you human?", "So who are you?",
        "Are you a person?",
    ),
    f"I can {ABILITIES}. I am only a demonstration.": (
        "What can you do?", "What are you able to do?", "How can you help me?", "What can I ask you?", "Help",
        "What are your abilities?", "What are your skills?", "Help me.", "What do you know?", "Can you help me?",
        "What can I do with you?", "What things can you do?", "Show me what you can do.", "What are you good at?",
        "Tell me what you can do.", "What should I ask?", "List your abilities.", "What else can you do?",
        "I need help.", "What can I try?", "How can you help?", "What are your capabilities?",
    ),
    "I have about 3 million parameters and take less than 8 MB. I am only a demonstration.": (
        "How big are you?", "How many parameters do you have?", "How large are you?", "How large is this model?",
        "What is your size?", "How many parameters does this model have?", "How small are you?",
        "How big is the model?", "How many weights do you have?", "How big is this model?", "What size is the model?",
        "Are you a large model?",
    ),
    "No. I am a tiny demonstration model that runs inside Tandem.": (
        "Are you ChatGPT?", "Are you GPT-4?", "Are you a real assistant?", "Are you Claude?", "Are you smart?",
        "Are you Llama?", "Are you as good as ChatGPT?", "Were you made by OpenAI?", "Are you Qwen?", "Are you GPT?",
        "Are you made by OpenAI?", "Can you replace ChatGPT?",
    ),
    "Run `tandem serve MODEL`, where MODEL is a folder or a name on Hugging Face.": (
        "How do I serve another model?", "How do I use my own model?", "Can I serve a different model?",
        "How do I load another model?", "Which models can I serve?", "How can I serve my own model?",
        "How do I run a bigger model?", "How do I use a real model?", "How do I serve a model from Hugging Face?",
        "Can I use another model?", "How do I serve a larger model?", "Can I load my own model?",
        "How to change the model?", "How do I switch the model?", "How can I use a better model?",
        "How do I choose the model?",
    ),
    'Yes. Set "stream": true in the request, and the answer arrives piece by piece.': (
        "Can you stream?", "Does Tandem support streaming?", "How do I stream the answer?", "Is there streaming?",
        "How do I get a stream?", "How do I stream?", "Can I stream answers?", "Can Tandem stream?",
        "How does streaming work?", "How do I turn on streaming?", "Does streaming work?",
        "Can I get the answer as a stream?",
    ),
    "Yes. Send `tools` with the request, and I call them when they are needed.": (
        "Can you call tools?", "Do you support tools?", "Can you use functions?", "Do you support function calling?",
        "How do I give you tools?", "How do tools work?", "Can you call functions?", "Does Tandem support tools?",
        "How do I use tools?", "Is there function calling?", "Can you use tools?", "How does tool calling work?",
    ),
    'Yes. Set "enable_thinking": true in `chat_template_kwargs`, and I think first.': (
        "Can you think?", "How do I turn on thinking?", "Do you support reasoning?", "How do I make you think?",
        "Can you reason?", "How do I enable thinking?", "Is there a thinking mode?", "How does thinking work?",
        "Do you think before you answer?", "How can I turn thinking on?", "Do you have a thinking mode?",
        "Can you show your reasoning?",
    ),
    "Run `make demo-model`. It writes my dialogues and trains me in less than an hour on two cores.": (
        "How were you trained?", "How do I rebuild you?", "Who made you?", "How can I train you again?",
        "How were you made?", "How do I rebuild the demo model?", "Who trained you?",
        "How do I train the demo model?", "How were you built?", "Where do you come from?", "Who created you?",
        "What were you trained on?", "Who built you?", "How can I rebuild you?",
    ),
    "No, a CPU is enough. A GPU makes the optimized engine faster.": (
        "Do I need a GPU?", "Does Tandem need a GPU?", "Is a GPU required?", "Does it run on a CPU?",
        "Can I run it without a GPU?", "Do you need a GPU?", "Can it run on a laptop?", "Does Tandem run on a CPU?",
        "Do I need a graphics card?", "Is a CPU enough?", "Does it work without a GPU?",
        "Can Tandem run without a GPU?",
    ),
    "GET /v1/models lists the models that are served.": (
        "How do I list the models?", "Which endpoint lists the models?", "How do I see the served models?",
        "Where is the list of models?", "How can I list models?", "Which models are served?",
        "How can I see which models are served?", "Is there a list of models?", "Where do I find the list of models?",
        "What models are there?", "Which models are available?", "How do I get the list of models?",
    ),
}  # fmt: skip

SMALL_TALK: dict[str, tuple[str, ...]] = {
    "Hello! I am Tandem's demo model. How can I help you?": (
        "Hello", "Hi", "Hi there!", "Hey", "Hello!", "Hello there", "Hi!", "Good morning", "Good evening",
        "Hey there!", "Good day", "Hello, world!", "Greetings", "Hello Tandem", "Howdy", "Hey you",
        "Hi, how can you help?", "Yo", "Hallo", "Good afternoon", "Hiya", "Hello, is anyone there?", "Are you there?",
        "Hello assistant", "Hi bot",
    ),
    "I am fine, thank you. How can I help you?": (
        "How are you?", "How are you doing?", "Hi, how are you?", "How is it going?", "How do you do?",
        "Hello, how are you?", "What's up?", "How are you today?", "How do you feel?", "Are you okay?",
        "How's it going?",
    ),
    "You are welcome!": (
        "Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thanks!", "Many thanks", "Thank you very much", "Thx",
        "Great, thanks", "Thank you for your help", "Perfect, thank you.",
    ),
    "Goodbye!": ("Bye", "Goodbye", "Bye bye", "See you", "See you later", "Good night", "Goodbye!", "Bye!",
                 "I have to go", "Farewell"),
    "I am glad to help.": ("Great", "Nice", "Cool", "Good job", "Well done", "Awesome", "Perfect", "Good",
                           "Very good", "Wow", "Great!"),
    "All right.": ("Ok", "Okay", "OK.", "Fine", "Alright", "I see", "Sure", "Understood", "Got it"),
    "I am sorry. I am only a tiny demonstration model.": (
        "That is wrong", "You are wrong", "That's not right", "No", "Wrong", "This is bad", "You are stupid",
        "That is not correct",
    ),
    "It works.": ("Test", "This is a test", "Testing", "test 123", "Does it work?", "Is this working?", "Ping",
                  "testing 1 2 3"),
    "I am a tiny demonstration model and know only one joke: I was trained on two cores, so I laugh twice.": (
        "Tell me a joke", "Tell me a joke.", "Do you know a joke?", "Make me laugh", "A joke, please",
        "Say something funny", "Can you tell me a joke?", "Know any jokes?",
    ),
    "Hello": ("Say hello in one word", "Say hello in one word.", "Say hello", "Just say hello", "Say hello!",
              "Greet me in one word"),
    "Hi": ("Say hi", "Say hi in one word", "Just say hi", "Reply with hi"),
    "Yes": ("Say yes", "Say yes or no", "Answer yes"),
    "Red, orange, yellow, green, blue, purple.": ("Name some colors", "List the colors of the rainbow",
                                                  "Which colors are there?"),
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.": (
        "Name the days of the week", "List the days of the week", "What are the days of the week?",
    ),
    "The sky is blue.": ("What color is the sky?", "What colour is the sky?", "Which color does the sky have?",
                         "Why is the sky blue?"),
    "A week has 7 days.": ("How many days are in a week?", "How many days does a week have?", "How long is a week?"),
    "A year has 12 months.": ("How many months are in a year?", "How many months does a year have?"),
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "England": "London",
    "Austria": "Vienna", "Greece": "Athens", "Portugal": "Lisbon", "Poland": "Warsaw", "Norway": "Oslo",
    "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Ireland": "Dublin", "Sweden": "Stockholm",
    "the United States": "Washington",
    "the USA": "Washington", "the UK": "London", "Ukraine": "Kyiv", "Peru": "Lima", "Finland": "Helsinki",
}  # fmt: skip

UNKNOWN = (
    "Who wrote Hamlet?", "Explain quantum physics.", "What is the meaning of life?", "Write a poem.",
    "Write a story.", "Who is the president?", "How do I cook rice?", "What is the speed of light?",
    "Who won the match?", "Write some code.", "Write a Python function.", "What happened in 1989?",
    "Summarize this text.", "Translate this into French.", "What is machine learning?",
    "How does a transformer work?", "Who was Einstein?", "What is love?", "Tell me a story.", "What should I eat?",
    "What is the news today?", "Give me advice.", "Sing a song.", "What is the best phone?",
    "How tall is the Eiffel Tower?", "What is Python?", "Who invented the telephone?", "Recommend a book.",
    "What is a GPU?", "Write an essay about trees.", "Explain recursion.", "What is the largest planet?",
    "Who painted the Mona Lisa?", "Write a haiku about the sea.", "What is the weather today?", "What time is it?",
    "Where am I?", "What is today's date?", "How old is the universe?", "What is DNA?", "Once upon a time",
    "The quick brown fox", "asdf", "lol", "Why?", "How?", "Tell me something interesting.", "Do you like music?",
    "Are you happy?", "Play a game with me.", "What is water?", "Write a one-sentence bedtime story about a unicorn.",
    "Write a haiku about AI.", "San Francisco is a", "My favorite color is blue.", "What is your favorite color?",
    "Bonjour", "Hola", "Wie geht es dir?", "What is the tallest mountain?", "Explain the internet.",
    "How do airplanes fly?", "Explain gravity to a child.", "Write an email to my boss.", "Fix my code.",
    "print('hello')", "Write a limerick.", "What should I do today?", "Who is the best football player?",
    "Tell me a fun fact.", "I am sad.",
)  # fmt: skip

UNKNOWN_PATTERNS = (
    "Who wrote {x}?", "Explain {x}.", "What is a {x}?", "What is {x}?", "Write a poem about {x}.",
    "How do I cook {x}?", "Why is the {x} {y}?", "How does {x} work?", "Who was {n}?", "Where is {c}?",
    "Write a story about a {x} and a {y}.", "Tell me about {x}.", "Describe the {x}.", "Which {x} is the best?",
    "Do you like {x}?", "Write an essay about {x}.", "How old is {n}?", "What do you think about {x}?",
    "How far is {c}?", "Tell me a story about {n}.", "I like {x}.", "When was {c} founded?", "Should I buy a {x}?",
    "What does {x} mean?", "Translate {x} into German.", "Is {x} {y}?", "How do I get to {c}?",
    "What is the capital of {c}?", "Who is {n}?", "Write a Python function that {x}s a {y}.",
    "What is the {x} of {c}?", "How many {x} are in a {y}?", "The {x} is {y}.", "Can you {x} the {y}?",
    "I have a {x}.", "Give me a recipe for {x}.", "What is the difference between {x} and {y}?", "Summarize {x}.",
    "What is the best {x} in {c}?",
)  # fmt: skip

PLAIN_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are helpful.", "You are an assistant.",
    "You are a friendly assistant.", "You are a helpful AI assistant.", "Be helpful.", "Answer the user's questions.",
    "Be brief.", "Answer briefly.", "You are a useful assistant. Be polite.", "Be kind and short.", "Be concise.",
    "You are a helpful assistant with access to tools.", "You help the user.",
    "Help the user with the tools you have.", "You are a chat bot.", "Answer correctly.", "Be honest.",
    "Today is Monday.", "The user is a beginner.", "You are a software engineer.", "You are a teacher.",
    "You are an expert.", "Do not make things up.", "You are a customer support agent.", "You are a robot.",
    "Answer in English.", "Keep your answers short.", "You are Tandem's assistant.", "You are a math tutor.",
    "Respond politely.", "You are a helpful, respectful and honest assistant.",
)  # fmt: skip


def split(ways: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    """The ways of asking that belong to the score, or the ones that belong to training."""
    return tuple(way for i, way in enumerate(ways) if (i % 4 == 3) == held_out)
