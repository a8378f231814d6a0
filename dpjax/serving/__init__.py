"""A trained network in people's hands: the library and its commands."""
