"""Training data: chats with images on disk, encoded rows, packed batches, preference pairs.

rows          chat rows on disk, before and after encoding
chat_dataset  encoded rows -> ids and labels; collators
packing       packing several examples into a row
preferences   preference pairs for DPO
mixtures      weighted mixtures in one flag
"""

__all__ = ["chat_dataset", "mixtures", "packing", "preferences", "rows"]
