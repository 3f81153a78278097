"""The multi-scale VQ image tokenizer (VAR): pixel values <-> codes, its losses and training data.

configuration  VQConfig
scales         pure functions of patch_nums: lengths, spans, grid positions
quantizer      multi-scale residual quantization: features <-> codes
layers         encoders and decoders
model          VQModel: encode and decode
loading        a folder -> VQModel
losses         LPIPS, patch-GAN, code usage, dead-code revival
image_dataset  training images
"""

__all__ = ["configuration", "image_dataset", "layers", "loading", "losses", "model", "quantizer", "scales"]
