"""Which image comes when: permutations computed place by place, order by shards, and weights of sources."""
