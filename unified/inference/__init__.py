"""Inference: text to image, chat, batches of questions, several samples per prompt.

arguments           sampling as commands and scripts are told of it
text_to_image       prompts -> images
chat                multi-turn conversations
batched_answers     batched answers to questions about images
samples_per_prompt  several images per prompt with a single prefill
"""

__all__ = ["arguments", "batched_answers", "chat", "samples_per_prompt", "text_to_image"]
