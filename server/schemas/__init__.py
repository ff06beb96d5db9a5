"""Request bodies as msgspec structs: one file per API family, and how bytes become them."""
