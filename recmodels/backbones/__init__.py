"""Pretrained language models as this project uses them: loaded, quantised, and run over batches of prompt trees."""
