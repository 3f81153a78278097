"""Training: what can be told, what learns, HF Trainer with a loss per modality and scale, measured speed.

arguments            what recipes/sft.py and dpo.py can be told
tokenizer_arguments  what recipes/train_vq.py can be told
fine_tuning          a fine-tuning in this process: settings -> trainer -> result
trainer              UnifiedTrainer and its callbacks
tuning               what learns: all weights, the new parts, low-rank updates
averaged_training    the loop of small vision models, with averaged weights
step_plan            how many steps fit the time, and where the schedule stands
planned_end          HF Trainer's runs planned so, and a word on those that were cut off
self_correction      wrong codes fed in training, for later scales to correct
compiled_layers      torch.compile of the backbone
image_start          whether text or an image comes next, calibrated after training
throughput           speed against the machine's matrix products
log_history          what trainings have logged, as one log
shutdown             shutting down the process group
"""

__all__ = [
    "arguments",
    "averaged_training",
    "compiled_layers",
    "fine_tuning",
    "image_start",
    "log_history",
    "planned_end",
    "self_correction",
    "shutdown",
    "step_plan",
    "throughput",
    "tokenizer_arguments",
    "trainer",
    "tuning",
]
