"""One module a dataset; all give the records of vimoe_jax.data.records."""
