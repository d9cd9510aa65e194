package worker

import (
	"maps"
	"sync"
)

// counts are numbers by name. The names are ours, so that they are few.
type counts struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *counts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]uint64{}
	}
	c.n[name]++
}

func (c *counts) all() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}
