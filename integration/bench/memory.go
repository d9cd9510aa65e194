package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	openConnections = 1000
	reloads         = 20
)

// memory measures what a gateway costs: idle, with many connections open, and
// the time from a saved policy to its effect.
func (b *bench) memory() (err error) {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	client, find, err := b.sandbox(s)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, client.Close)
	t := table{Title: "A gateway's memory and descriptors: the monitor, and the worker once there is one", Unit: "MiB, or a number"}
	g, err := find()
	if err != nil {
		return err
	}
	idle, err := g.use()
	if err != nil {
		return err
	}
	if g, err = awake(client, find); err != nil {
		return err
	}
	woken, err := g.use()
	if err != nil {
		return err
	}
	if _, err := client.ask(order{Op: "hold", Addr: echoHost + ":7000", Count: openConnections}); err != nil {
		return err
	}
	busy, err := g.use()
	if err != nil {
		return err
	}
	if _, err := client.ask(order{Op: "drop"}); err != nil {
		return err
	}
	one := func(name string, v, bar, aim float64) {
		t.Rows = append(t.Rows, series{Name: name, Samples: []float64{v}, Bar: bar, Aim: aim, Absolute: bar != 0})
	}
	with := fmt.Sprintf(" with %d open connections", openConnections)
	one("PSS, idle", idle.pss, 12, 8)
	one("RSS, idle", idle.rss, 0, 0)
	one("PSS, idle after a first connection", woken.pss, 0, 0)
	one("RSS, idle after a first connection", woken.rss, 0, 0)
	one("PSS,"+with, busy.pss, 40, 25)
	one("RSS,"+with, busy.rss, 0, 0)
	one("descriptors, idle", idle.files, 0, 0)
	one("descriptors, idle after a first connection", woken.files, 0, 0)
	one("descriptors,"+with, busy.files, 0, 0)
	if err := b.print(t); err != nil {
		return err
	}
	return b.reload(s, client)
}

// use is what processes hold: memory in MiB, and descriptors.
type use struct{ pss, rss, files float64 }

func (g gateway) use() (sum use, err error) {
	for _, pid := range g {
		f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return sum, err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			name, rest, _ := strings.Cut(lines.Text(), ":")
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				continue // the first line names the range
			}
			switch name {
			case "Pss":
				sum.pss += kib / 1024
			case "Rss":
				sum.rss += kib / 1024
			}
		}
		f.Close()
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return sum, err
		}
		sum.files += float64(len(fds))
	}
	return sum, nil
}

// reload measures the time from the rename that saves a policy to the first
// connection that it allows, as the program in the sandbox sees it.
func (b *bench) reload(s *site, client *remote) error {
	r := series{Name: "nemoclaw", Bar: 1000, Aim: 20, Absolute: true}
	for range reloads {
		if err := s.write(false); err != nil {
			return err
		}
		if _, err := client.ask(order{Op: "until refused", Addr: lateHost + ":7000"}); err != nil {
			return err
		}
		saved := make(chan int64, 1)
		go func() {
			// The client is trying by the time of the rename.
			time.Sleep(pause)
			at := monotonic()
			if s.write(true) != nil {
				at = 0
			}
			saved <- at
		}()
		a, err := client.ask(order{Op: "until allowed", Addr: lateHost + ":7000"})
		if err != nil {
			return err
		}
		at := <-saved
		if at == 0 {
			return errors.New("cannot save the policy")
		}
		r.Samples = append(r.Samples, float64(a.At-at)/1e6)
	}
	return b.print(table{Title: "Reload", Unit: "from the rename of a policy to the first connection that it allows: ms", Rows: []series{r}})
}
