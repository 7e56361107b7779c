"""`inference.py --task serve`: a web server that speaks the OpenAI API, and a page to chat with it."""
