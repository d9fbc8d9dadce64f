module farebox/bench

go 1.21
