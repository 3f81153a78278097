"""Training data: chats with images on disk, encoded rows, packed batches, preference pairs.

rows            chat rows on disk, before and after encoding
chat_dataset    encoded rows -> ids and labels; collators
captions        images with captions -> chat rows
encoding        rows with images -> rows with codes
image_decoding  images of rows -> uint8 squares, in processes of their own
packing         packing several examples into a row
preferences     preference pairs for DPO
mixtures        weighted mixtures in one flag
"""

__all__ = ["captions", "chat_dataset", "encoding", "image_decoding", "mixtures", "packing", "preferences", "rows"]
