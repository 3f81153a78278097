"""Training: arguments, trainable parameters, HF Trainer with a loss per modality and scale, measured speed.

arguments            arguments of recipes/sft.py and dpo.py
tokenizer_arguments  arguments of recipes/train_vq.py
fine_tuning          a fine-tuning run in this process: arguments -> trainer -> result
inherited            keys of HF's and TRL's arguments: bounds, and those that are refused
trainer              UnifiedTrainer and its callbacks
tuning               trainable parameters: all weights, the new modules, LoRA
backbone_needs       what a run does otherwise for some backbones: rows of one document, balance of experts
averaged_training    training loop of small vision models, with averaged weights (EMA)
finite               stopping at a loss, gradient norm or weight that is not finite
run_folder           whose folder it is: not another run's, not trained into twice
description          what a trainer leaves beside its weights
run_record           what a run was made of, compared when it goes on
run_state            state of a loop's run in a checkpoint, read without executing anything
step_plan            number of steps that fit the time limit, and the schedule over them
other_ranks          one line where another process of the run has ended
length_order         batches of like lengths, in an order that can be resumed
planned_end          this plan for HF Trainer's runs, and a message for runs that were cut off
hardware_choice      device and precision of a training, recorded in every checkpoint
memory               running out of memory, with the settings that would take less
self_correction      corrupted input codes in training, which later scales learn to correct
compiled_layers      torch.compile of the backbone
image_start          whether text or an image comes next, calibrated after training
rollouts             answers with pictures for TRL's GRPOTrainer
throughput           speed against the machine's matrix products
log_history          log histories of several runs, combined
progress_bar         the bar of HF Trainer's runs: planned steps, and the losses
loss_plots           a plot of the losses beside every log
trackers             TensorBoard, W&B, or neither: figures and images
engines              DeepSpeed and FSDP: which is launched, what counts of it, what is refused
quantized            QLoRA: frozen layers in 4 or 8 bit
sharding             FSDP2: what is refused, and weights gathered outside a forward pass
shutdown             shutting down the process group
"""

__all__ = [
    "arguments",
    "averaged_training",
    "backbone_needs",
    "compiled_layers",
    "description",
    "engines",
    "fine_tuning",
    "finite",
    "hardware_choice",
    "image_start",
    "inherited",
    "length_order",
    "log_history",
    "loss_plots",
    "memory",
    "other_ranks",
    "planned_end",
    "progress_bar",
    "quantized",
    "run_folder",
    "run_record",
    "run_state",
    "rollouts",
    "self_correction",
    "sharding",
    "shutdown",
    "step_plan",
    "throughput",
    "tokenizer_arguments",
    "trackers",
    "trainer",
    "tuning",
]
