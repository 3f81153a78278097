"""Training data: chats with images on disk, encoded rows, packed batches, preference pairs.

rows                 chat rows on disk, before and after encoding
forms                forms in which people publish rows
shard_metadata       what encoded shards say of their codes
image_refs           pictures of rows before they are read
parquet              parquet files in bounded memory
chat_dataset         encoded rows -> ids and labels; the collator
chat_collator        rows -> the batches of TRL's SFTTrainer
captions             images with captions -> chat rows
encoding             rows with images -> rows with codes
image_decoding       images of rows -> uint8 squares, in processes of their own
packing              packing several examples into a row
pair_forms           forms in which people publish preference pairs
preferences          preference pairs for DPO
preference_collator  pairs and single answers -> the batches of TRL's trainers
mixtures             weighted mixtures in one flag
"""

__all__ = [
    "captions",
    "chat_collator",
    "chat_dataset",
    "encoding",
    "forms",
    "image_decoding",
    "image_refs",
    "mixtures",
    "packing",
    "pair_forms",
    "parquet",
    "preference_collator",
    "preferences",
    "rows",
    "shard_metadata",
]
