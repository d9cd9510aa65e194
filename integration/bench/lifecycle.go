package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// interleave gives every contestant a turn in each round, in a new order each
// time and a pause apart. The first round warms caches and is not counted.
func interleave(rounds, contestants int, turn func(who int, counted bool) error) error {
	for round := range rounds + 1 {
		for _, who := range rand.Perm(contestants) {
			time.Sleep(pause)
			if err := turn(who, round > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// notInstalled adds a row for each runtime that could not be asked.
func (b *bench) notInstalled(t *table) {
	for _, name := range b.missing {
		t.Rows = append(t.Rows, series{Name: name, Note: "not installed"})
	}
}

// lifecycle measures create, start, the end of "true", and delete.
func (b *bench) lifecycle() error {
	for _, p := range []struct {
		profile  profile
		bar, aim float64
	}{{noProfile, 1.15, 1}, {dockerProfile, 0.90, 0.75}} {
		if err := b.lifecycleWith(p.profile, p.bar, p.aim); err != nil {
			return err
		}
	}
	return nil
}

// steps are what a container's life is made of, in order.
var steps = []string{"create", "start", "end", "delete"}

func (b *bench) lifecycleWith(p profile, bar, aim float64) error {
	whole := table{Title: "A container's life: " + string(p), Unit: "create, start, end of `true`, delete: ms"}
	parts := table{Title: "Its steps: " + string(p), Unit: "ms"}
	var bundles []string
	for _, c := range b.runtimes {
		dir, err := b.bundle(c.name+" life "+string(p), p, b.rootfs(), "/bin/true")
		if err != nil {
			return err
		}
		bundles = append(bundles, dir)
		s := series{Name: c.name, Against: reference}
		if c.name == nemoclaw {
			s.Bar, s.Aim = bar, aim
		}
		whole.Rows = append(whole.Rows, s)
		for _, step := range steps {
			parts.Rows = append(parts.Rows, series{Name: step + ", " + c.name, Against: step + ", " + reference})
		}
	}
	err := interleave(b.rounds, len(b.runtimes), func(who int, counted bool) error {
		took, err := b.life(b.runtimes[who], bundles[who])
		if err != nil || !counted {
			return err
		}
		var sum time.Duration
		for i, d := range took {
			parts.add(len(steps)*who+i, milliseconds(d))
			sum += d
		}
		whole.add(who, milliseconds(sum))
		return nil
	})
	if err != nil {
		return err
	}
	b.notInstalled(&whole)
	return errors.Join(b.print(whole), b.print(parts))
}

// life is one container's, as an engine calls for it, and what each of the
// steps took.
func (b *bench) life(c contestant, bundle string) (took []time.Duration, err error) {
	begin := time.Now()
	lap := func() {
		now := time.Now()
		took = append(took, now.Sub(begin))
		begin = now
	}
	k, err := b.create(c, bundle)
	if err != nil {
		return nil, err
	}
	lap()
	if err := c.do("start", k.id); err != nil {
		return nil, errors.Join(err, k.remove())
	}
	lap()
	if err := k.wait(); err != nil {
		return nil, err
	}
	lap()
	unix.Close(k.pidfd)
	if err := c.do("delete", k.id); err != nil {
		return nil, err
	}
	lap()
	return took, nil
}

// exec measures "exec true" in containers that run meanwhile.
func (b *bench) exec() error {
	for _, p := range []profile{noProfile, dockerProfile} {
		if err := b.execWith(p); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) execWith(p profile) error {
	t := table{Title: "Exec: " + string(p), Unit: "exec `true`: ms"}
	var running []*container
	defer func() {
		for _, k := range running {
			if err := k.remove(); err != nil {
				fmt.Fprintln(b.stderr, "bench:", err)
			}
		}
	}()
	for _, c := range b.runtimes {
		bundle, err := b.bundle(c.name+" exec "+string(p), p, b.rootfs(), "/bin/sleep", "100000")
		if err != nil {
			return err
		}
		k, err := b.create(c, bundle)
		if err != nil {
			return err
		}
		running = append(running, k)
		if err := c.do("start", k.id); err != nil {
			return err
		}
		s := series{Name: c.name, Against: reference}
		if c.name == nemoclaw {
			s.Bar, s.Aim, s.ByBest = 1.10, 1, true
		}
		t.Rows = append(t.Rows, s)
	}
	err := interleave(b.rounds, len(running), func(who int, counted bool) error {
		begin := time.Now()
		if err := running[who].do("exec", running[who].id, "/bin/true"); err != nil {
			return err
		}
		if counted {
			t.add(who, milliseconds(time.Since(begin)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.notInstalled(&t)
	return b.print(t)
}
