package main

import (
	"errors"
	"fmt"
	"time"
)

const (
	crowd = 50 // sandboxes at once
	ends  = 5  // of them, the first and the last, whose create is compared
)

// density measures many sandboxes on one machine: whether the last is made as
// fast as the first, and what their gateways hold together. Runc makes as many
// containers, in turn with it.
func (b *bench) density() (err error) {
	var names []string
	for _, name := range []string{nemoclaw, reference} {
		if _, err := b.contestant(name); err != nil {
			if name == nemoclaw {
				return err
			}
			continue
		}
		names = append(names, name)
	}
	var running []*container
	defer func() {
		for _, k := range running {
			err = errors.Join(err, k.remove())
		}
	}()
	took := make([][]float64, len(names))
	for n := range crowd {
		for i, name := range names {
			time.Sleep(pause)
			c, err := b.contestant(name)
			if err != nil {
				return err
			}
			bundle, err := b.bundle(fmt.Sprintf("crowd %s %d", name, n), dockerProfile, b.rootfs(), "/bin/sleep", "100000")
			if err != nil {
				return err
			}
			begin := time.Now()
			k, err := b.create(c, bundle)
			if err != nil {
				return err
			}
			running = append(running, k)
			if err := c.do("start", k.id); err != nil {
				return err
			}
			took[i] = append(took[i], milliseconds(time.Since(begin)))
		}
	}
	times := table{Title: fmt.Sprintf("%d sandboxes on one machine", crowd), Unit: "create and start: ms"}
	for i, name := range names {
		first := fmt.Sprintf("%s, the first %d", name, ends)
		times.Rows = append(times.Rows,
			series{Name: name + ", the very first", Samples: took[i][:1]},
			series{Name: first, Samples: took[i][:ends]},
			series{Name: fmt.Sprintf("%s, the last %d", name, ends), Samples: took[i][crowd-ends:], Against: first})
	}
	held := table{Title: fmt.Sprintf("What the gateways of %d idle sandboxes hold", crowd), Unit: "MiB, or a number",
		Notes: "None has connected, so that none has a worker."}
	var pids []int
	for _, k := range running {
		if k.name != nemoclaw {
			continue
		}
		g, err := gatewayOf(k.contestant, k.id)
		if err != nil {
			return err
		}
		pids = append(pids, g...)
	}
	all, err := useOf(pids)
	if err != nil {
		return err
	}
	for _, r := range []struct {
		name string
		v    float64
	}{{"PSS, all", all.pss}, {"PSS of one", all.pss / crowd}, {"RSS, all, shared pages counted each time", all.rss}, {"descriptors, all", all.files}} {
		held.Rows = append(held.Rows, series{Name: r.name, Samples: []float64{r.v}})
	}
	return errors.Join(b.print(times), b.print(held))
}
