"""Reading and writing files: pictures, tensors, metadata; nothing here trusts what it reads."""
