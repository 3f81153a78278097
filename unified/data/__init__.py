"""Training data: chats with images on disk, encoded rows, packed batches, preference pairs.

rows          chat rows on disk, before and after encoding
chat_dataset  encoded rows -> ids and labels; collators
packing       several examples in a row
preferences   pairs of answers, for DPO
mixtures      weights of a mixture as one flag
"""

__all__ = ["chat_dataset", "mixtures", "packing", "preferences", "rows"]
