package worker

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"nemoclaw/egress/control"
)

// An engine's resolver is asked first for names of one label and last for
// others, and what it got from our own DNS is no answer.
func TestEngineAndNameservers(t *testing.T) {
	for _, c := range []struct {
		name           string
		host           string
		inside, world  string // what each answers; "": it knows no address
		want           string
		asked, askedOf string // who was asked
	}{
		{"a container", "db", "172.30.8.2", "93.184.216.34", "[172.30.8.2]", "engine", ""},
		{"a name of one label that is none", "db", "", "93.184.216.34", "[93.184.216.34]", "engine", "world"},
		{"a host of the world", "api.example", "172.30.8.2", "93.184.216.34", "[93.184.216.34]", "", "world"},
		{"an alias with dots", "api.example", "172.30.8.2", "", "[172.30.8.2]", "engine", "world"},
		{"an address of ours", "db", "198.19.0.7", "93.184.216.34", "[93.184.216.34]", "engine", "world"},
		{"nobody", "db", "", "", "the name has no address", "engine", "world"},
		{"an engine that is not there", "db", "fault", "93.184.216.34", "[93.184.216.34]", "", "world"},
		{"nobody, and no engine", "db", "fault", "", "the name has no address; cannot resolve the name: the engine's resolver: no engine listens", "", "world"},
	} {
		t.Run(c.name, func(t *testing.T) {
			zone := func(addr string) []string {
				if addr == "" || addr == "fault" {
					return nil
				}
				return []string{c.host + ". 600 A " + addr}
			}
			world, inside := new(nameserver), new(nameserver)
			r := resolverOf(t, world, zone(c.world)...)
			r.engine = engineOf(t, inside, c.inside == "fault", zone(c.inside)...)
			addrs, err := r.lookup(t.Context(), c.host)
			got := fmt.Sprint(addrs)
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if (inside.asked.Load() > 0) != (c.asked != "") || (world.asked.Load() > 0) != (c.askedOf != "") {
				t.Errorf("the engine was asked %d times, the world %d", inside.asked.Load(), world.asked.Load())
			}
		})
	}
}

// A container's address does not count for as long as its engine says: it may be
// another one's by then.
func TestEnginesAnswersAreShort(t *testing.T) {
	r := resolverOf(t, new(nameserver))
	r.engine = engineOf(t, new(nameserver), false, "db. 600 A 172.30.8.2")
	if _, err := r.lookup(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(r.known["db"].until); left > engineTTL {
		t.Errorf("kept for %v", left)
	}
}

// engineOf is an engine's resolver to which a monitor connects, or does not.
func engineOf(t *testing.T, n *nameserver, fails bool, zone ...string) *engine {
	t.Helper()
	for _, line := range zone {
		rr, err := wire.NewRR(line)
		check(t, err)
		n.zone = append(n.zone, rr)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	go (&wire.Server{Listener: l, Handler: n}).ActivateAndServe()
	ours, theirs, err := control.Pair()
	check(t, err)
	monitor, err := control.FromFile(theirs)
	check(t, err)
	t.Cleanup(func() { l.Close(); ours.Close(); monitor.Close() })
	e := newEngine(ours)
	go func() { // the worker's conversation
		for {
			var m control.ToWorker
			files, err := ours.Recv(&m)
			if err != nil {
				return
			}
			e.dialed(m.Dialed, files)
		}
	}()
	go func() {
		for {
			var m control.ToMonitorFromWorker
			if _, err := monitor.Recv(&m); err != nil {
				return
			}
			if fails {
				monitor.Send(control.ToWorker{Dialed: &control.Dialed{N: m.Engine.N, Fault: "no engine listens"}})
				continue
			}
			c, err := net.Dial("tcp4", l.Addr().String())
			if err != nil {
				return
			}
			f, err := c.(*net.TCPConn).File()
			if err == nil {
				monitor.Send(control.ToWorker{Dialed: &control.Dialed{N: m.Engine.N}}, f)
				control.CloseAll([]*os.File{f})
			}
			c.Close()
		}
	}()
	return e
}
