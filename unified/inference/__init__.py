"""Using a model: text to image, chat, batches of questions, several samples of a prompt.

text_to_image       prompts -> images
chat                a conversation that grows
batched_answers     many questions about images at once
samples_per_prompt  several images of a prompt that is run once
"""

__all__ = ["batched_answers", "chat", "samples_per_prompt", "text_to_image"]
