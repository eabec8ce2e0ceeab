"""The Open Inference Protocol's messages, generated from `open_inference.proto` and committed."""
