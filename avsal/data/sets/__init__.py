"""One module per family of data sets; each set is a LightningDataModule, reached through `avsal.data`."""
