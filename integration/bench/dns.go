package main

import (
	"errors"
	"fmt"
	"net"
	"os/exec"

	"nemoclaw/integration/world"
)

const (
	dnsLone  = 100  // questions of a lone client in one round
	dnsMany  = 2000 // milliseconds that many ask in one round; the second half counts
	dnsPorts = 32   // that they ask from
)

// dns measures the sandbox's resolver: how long one question takes, and how
// many are answered, which a limit bounds.
func (b *bench) dns() (err error) {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	outside, err := startClient(exec.Command("/proc/self/exe", clientArg), s.uplink)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, outside.Close)
	inside, _, err := b.sandbox(s)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, inside.Close)

	const direct = "a name server of Go's, directly"
	ways := []struct {
		name   string
		client *remote
		order  order
	}{
		{direct, outside, order{Addr: net.JoinHostPort(world.Nameserver.String(), "53"), Path: webHost}},
		{"nemoclaw, a listed name", inside, order{Path: webHost}},
		{"nemoclaw, an unlisted name, a new one each time", inside, order{Path: "*.unlisted.example"}},
	}
	p50 := table{Title: "DNS: one question at a time", Unit: "p50: ms", Notes: fmt.Sprintf("One every %v, since a sandbox is answered 200 a second.", askEvery)}
	p99 := table{Title: "DNS: the slowest of them", Unit: "p99: ms"}
	many := table{Title: fmt.Sprintf("DNS: questions from %d ports at once", dnsPorts), Unit: "answers/s", More: true,
		Notes: "A sandbox is answered 200 a second, on purpose (egress/LIMITS.md): here the limit is measured, above the resolver."}
	for _, w := range ways {
		p50.Rows = append(p50.Rows, series{Name: w.name, Against: direct})
		p99.Rows = append(p99.Rows, series{Name: w.name, Against: direct})
	}
	many.Rows = []series{{Name: ways[0].name}, {Name: ways[1].name, Against: direct}}
	err = interleave(max(b.rounds/3, 1), len(ways), func(who int, counted bool) error {
		w := ways[who]
		lone := w.order
		lone.Op, lone.Count = "ask", dnsLone
		one, err := w.client.ask(lone)
		if err != nil || !counted {
			return err
		}
		p50.add(who, float64(one.P50)/1e6)
		p99.add(who, float64(one.P99)/1e6)
		return nil
	})
	if err != nil {
		return err
	}
	// Later, since what they use up of the limit the lone ones would wait for.
	err = interleave(max(b.rounds/10, 1), len(many.Rows), func(who int, counted bool) error {
		w := ways[who]
		all := w.order
		all.Op, all.Clients, all.Millis = "ask much", dnsPorts, dnsMany
		a, err := w.client.ask(all)
		if err == nil && counted {
			many.add(who, float64(a.Count)*1e9/float64(a.Nanos))
		}
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(b.print(p50), b.print(p99), b.print(many))
}
