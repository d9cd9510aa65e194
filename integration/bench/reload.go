package main

import (
	"errors"
	"fmt"
	"time"
)

const reloads = 20

// reload measures the time from the rename that saves a policy to the first
// connection that it allows, as the program in the sandbox sees it, with few
// rules and with many.
func (b *bench) reload() (err error) {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	client, _, err := b.sandbox(s)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, client.Close)
	t := table{Title: "Reload", Unit: "from the rename of a policy to the first connection that it allows: ms"}
	for _, rules := range []int{10, 10000} {
		s.further = rules
		r := series{Name: fmt.Sprintf("nemoclaw, %d rules beside those that are used", rules), Bar: 1000, Aim: 20, Absolute: true}
		for range min(b.rounds, reloads) {
			took, err := s.reload(client)
			if err != nil {
				return fmt.Errorf("%s: %w", r.Name, err)
			}
			r.Samples = append(r.Samples, took)
		}
		t.Rows = append(t.Rows, r)
	}
	return b.print(t)
}

// reload takes a rule out and puts it in again, and returns how long the
// latter took to work, in milliseconds.
func (s *site) reload(client *remote) (float64, error) {
	if err := s.write(false); err != nil {
		return 0, err
	}
	if _, err := client.ask(order{Op: "until refused", Addr: lateHost + ":7000"}); err != nil {
		return 0, err
	}
	saved := make(chan int64, 1)
	go func() {
		// The client is trying by the time of the rename.
		time.Sleep(pause)
		at, err := s.save(true)
		if err != nil {
			at = 0
		}
		saved <- at
	}()
	a, err := client.ask(order{Op: "until allowed", Addr: lateHost + ":7000"})
	at := <-saved
	switch {
	case err != nil:
		return 0, err
	case at == 0:
		return 0, errors.New("cannot save the policy")
	}
	return float64(a.At-at) / 1e6, nil
}
