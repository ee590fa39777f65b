"""One model: rows in, columns out. The only home of torch and transformers."""
