"Soft decoding as the `generate` of any causal model: `custom_generate=<this folder or repository>`."
try: from soft_decoding import soft_decode as generate
except ImportError as e:
    raise ImportError("This recipe is a door to the library soft_decoding, which is not installed: `pip install "
                      "git+https://github.com/soft-decoding/soft_decoding`.") from e
