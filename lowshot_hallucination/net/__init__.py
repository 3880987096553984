"""The layers and networks: trunks, prototypes, matching networks, embeddings."""
