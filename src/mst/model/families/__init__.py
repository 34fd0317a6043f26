"""timm's families of backbones: ViT, rotary ViT (EVA), Swin."""
