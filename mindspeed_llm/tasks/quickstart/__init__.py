"""The quickstart's own parts: an invented world and its texts, a tiny GLM4 in the ChatGLM layout, the report."""
