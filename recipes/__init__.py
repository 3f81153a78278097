raise ModuleNotFoundError("run these as scripts: accelerate launch recipes/train_vq.py --config recipes/configs/...")
