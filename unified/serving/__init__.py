"""A server of many clients: an engine that batches, and OpenAI's protocol over it.

jobs        what the engine is asked for, and its events
prefixes    conversations that may go on, by what was said
rows        contexts of different lengths in one batch
sequences   one answer as it grows
batches     what runs together: text by token, images by scale
scheduler   what runs next
engine      the thread that owns the model
settings    bounds and defaults of a server
errors      OpenAI's error object
gate        keys and sizes of requests
fetching    files of public URLs
pictures    images in requests and answers
protocol    requests and answers as pydantic models
metrics     counts for Prometheus
service     what all routes share
drawing     /v1/images
chat_protocol  requests and answers of /v1/chat/completions
conversation   OpenAI's messages as the model's, with their pictures
text_stream    tokens to text as they come
answering      /v1/chat/completions
responding     /v1/responses
app         the FastAPI app

The page, of which only `page` and `page_sessions` import gradio:

page           the page at `/`
page_sessions  pages that were opened, and for how long they are kept
page_access    what of gradio is served, and to whom
page_chat      its conversations
page_create    its drawings
page_about     its last tab, and model cards
page_pictures  pictures as HTML
"""

__all__ = [
    "answering",
    "chat_protocol",
    "conversation",
    "text_stream",
    "responding",
    "app",
    "batches",
    "drawing",
    "engine",
    "errors",
    "fetching",
    "gate",
    "jobs",
    "metrics",
    "page",
    "page_about",
    "page_access",
    "page_chat",
    "page_create",
    "page_pictures",
    "page_sessions",
    "pictures",
    "prefixes",
    "protocol",
    "rows",
    "scheduler",
    "sequences",
    "service",
    "settings",
]
