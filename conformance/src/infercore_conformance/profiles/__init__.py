"""The profiles: each package here is one, its docstring's first line says what it is about."""
