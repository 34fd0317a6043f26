"""Networks: timm backbones behind one token interface, heads, decoders, the student-teacher pair."""
