package worker

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A name with twenty addresses of which nineteen are dead is reached by the
// last, each having had its head start and no more; those that lose are given up.
func TestDeadAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	synctest.Test(t, func(t *testing.T) {
		var addrs []netip.Addr
		for a := netip.MustParseAddr("203.0.113.1"); len(addrs) < 20; a = a.Next() {
			addrs = append(addrs, a)
		}
		alive, given := addrs[19], 0
		s := &server{Worker: new(Worker)}
		s.Dial = func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
			if to.Addr() != alive {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			given = int(time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) / staggerTime) // where a bubble's clock begins
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
		c, fail := s.race(t.Context(), addrs, 443)
		if fail != nil {
			t.Fatalf("not reached: %+v", fail)
		}
		defer c.Close()
		if c.to.Addr() != alive || given != 19 {
			t.Errorf("reached %s after %d head starts; want %s after 19", c.to, given, alive)
		}
		if len(addrs) > maxAddrs {
			t.Errorf("of %d addresses %d are tried", len(addrs), maxAddrs)
		}
		s.wg.Wait() // nobody dials on
	})
}
