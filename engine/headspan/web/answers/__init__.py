"""The explorer's answers as pydantic models: what each address of the HTTP API returns."""
