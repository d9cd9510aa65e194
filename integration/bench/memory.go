package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// What is held open. One gateway carries 1,024 connections, on purpose
// (egress/LIMITS.md), so that many more take several sandboxes.
const (
	someConnections = 1000
	manyConnections = 10000
)

// many returns how many connections are held at most: as manyConnections says,
// if a proxy may have two descriptors for each.
func (b *bench) many() int {
	return min(manyConnections, (b.descriptors-someConnections)/2/someConnections*someConnections)
}

// memory measures what the processes in between hold: idle, and with many
// connections open.
func (b *bench) memory() (err error) {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ways, missing, err := b.paths(s)
	if err != nil {
		return err
	}
	ways = ways[1:] // on the direct one there is nobody in between
	t := table{Title: "Memory and descriptors of the processes in between", Unit: "MiB, or a number",
		Notes: fmt.Sprintf("What the kernel holds for a connection is not in it. %d connections are those of %d sandboxes with a gateway each. "+
			"This machine allows a process %d descriptors.", b.many(), b.many()/someConnections, b.descriptors)}
	one := func(name string, v, bar, aim float64) {
		t.Rows = append(t.Rows, series{Name: name, Samples: []float64{v}, Bar: bar, Aim: aim, Absolute: bar != 0})
	}
	row := func(who, when string, u use, bar, aim float64) {
		one(who+", "+when+": PSS", u.pss, bar, aim)
		one(who+", "+when+": RSS", u.rss, 0, 0)
		one(who+", "+when+": descriptors", u.files, 0, 0)
	}
	some, many := fmt.Sprintf("%d connections", someConnections), fmt.Sprintf("%d connections", b.many())
	asleep, err := b.asleep(s)
	if err != nil {
		return err
	}
	row(gatewayPath, "before a first connection, which starts the worker", asleep, 12, 8)
	for _, w := range ways {
		var bar, aim float64
		if w.name == gatewayPath {
			bar, aim = 40, 25
		}
		idle, err := useOf(w.pids)
		if err != nil {
			return err
		}
		row(w.name, "idle", idle, 0, 0)
		held, err := w.holding(someConnections)
		if err != nil {
			return err
		}
		row(w.name, some, held, bar, aim)
		switch {
		case w.most != 0:
			t.Rows = append(t.Rows, series{Name: w.name + ", " + many, Note: "not tried"})
		case w.name == gatewayPath:
			held, err = b.manySandboxes(s, w)
		default:
			held, err = w.holding(b.many() - someConnections)
		}
		if err != nil {
			return err
		}
		if w.most == 0 {
			row(w.name, many, held, 0, 0)
		}
		if _, err := w.client.ask(order{Op: "drop"}); err != nil {
			return err
		}
	}
	for _, name := range missing {
		t.Rows = append(t.Rows, series{Name: name, Note: "not installed"})
	}
	return b.print(t)
}

// holding opens so many further connections by w and returns what the
// processes in between use then.
func (w path) holding(count int) (use, error) {
	if _, err := w.client.ask(order{Op: "hold", Addr: w.hold, Via: w.via, Count: count}); err != nil {
		return use{}, fmt.Errorf("%s: %w", w.name, err)
	}
	return useOf(w.pids)
}

// asleep returns what the gateway of a sandbox that has not connected uses.
func (b *bench) asleep(s *site) (sum use, err error) {
	client, find, err := b.sandboxCalled("asleep", s)
	if err != nil {
		return use{}, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	g, err := find()
	if err != nil {
		return use{}, err
	}
	return useOf(g)
}

// manySandboxes starts as many sandboxes beside first as many connections take,
// and returns what their gateways use together.
func (b *bench) manySandboxes(s *site, first path) (sum use, err error) {
	pids := slices.Clone(first.pids)
	var others []*remote
	defer func() {
		for _, client := range others {
			err = errors.Join(err, client.Close())
		}
	}()
	for n := 1; n < b.many()/someConnections; n++ {
		client, find, err := b.sandboxCalled(fmt.Sprint("client", n), s)
		if err != nil {
			return use{}, err
		}
		others = append(others, client)
		if _, err := client.ask(order{Op: "hold", Addr: first.hold, Count: someConnections}); err != nil {
			return use{}, err
		}
		g, err := find()
		if err != nil {
			return use{}, err
		}
		pids = append(pids, g...)
	}
	return useOf(pids)
}

// use is what processes hold: memory in MiB, and descriptors.
type use struct{ pss, rss, files float64 }

// useOf adds up what processes hold (proc_pid_smaps_rollup(5), Linux 4.14).
func useOf(pids []int) (sum use, err error) {
	for _, pid := range pids {
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
