"""hone: the library that the programs share. It imports none of them, and nothing heavy."""
