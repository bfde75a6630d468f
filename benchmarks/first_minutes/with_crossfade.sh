# Train on plays.csv; print neighbors of an artist, and artists for a customer.
set -e
echo '{name: plays, data: {path: data/plays}}' > plays.yaml
crossfade prepare --events plays.csv --query customer=customer --item artist=artist --hold-out random:0.1 --out data/plays
crossfade train plays.yaml
crossfade similar runs/plays Radiohead -k 10
crossfade recommend runs/plays --customer 2
