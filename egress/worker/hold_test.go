package worker

import (
	"io"
	"net"
	"testing"
	"time"

	"nemoclaw/egress/control"
)

const holding = "egress: {defaults: {on_unlisted: hold, hold: 5m}, rules: [], deny: [{host: bad.example.com}]}"

// An unlisted connection waits for the operator, and his approval lets it
// through: the program never sees a refusal.
func TestHeldUntilApproved(t *testing.T) {
	sb := newSandbox(t, holding)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	held := sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	sb.wantNoDial()
	sb.apply(holding) // rules that change nothing for it let it wait
	sb.wantNoDial()
	sb.apply(holding, control.Grant{ID: 1, Host: "db.example.com", Port: 5432, Allow: true})
	wantEcho(t, c, "hello")
	if r := sb.wantRecords("allow tcp db.example.com:5432"); r.Request != held.Request || r.Rule != "grant" {
		t.Errorf("it was held as %s and allowed as %+v", held.Request, r)
	}
}

// What is held ends: by the operator's word, at the end of its time, and what
// no approval could allow is not held at all.
func TestHeldAndRefused(t *testing.T) {
	sb := newSandbox(t, holding)
	c := sb.dial("db.example.com", 5432)
	sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	sb.apply(holding, control.Grant{ID: 1, Host: "db.example.com", Port: 5432})
	wantReset(t, c)
	sb.wantRecords("refuse tcp db.example.com:5432 denied")

	wantReset(t, sb.dial("bad.example.com", 5432))
	sb.wantRecords("refuse tcp bad.example.com:5432 denied")

	sb.apply("egress: {defaults: {on_unlisted: hold, hold: 1s}, rules: []}")
	wantReset(t, sb.dial("late.example.com", 5432))
	sb.wantRecords("hold tcp late.example.com:5432 not-listed", "refuse tcp late.example.com:5432 not-listed")
}

// So many wait at once; those beyond are refused, and places come back.
func TestHeldAreBounded(t *testing.T) {
	sb := newSandbox(t, holding)
	for range maxHeld {
		sb.dial("db.example.com", 5432)
	}
	for range maxHeld {
		sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	}
	wantReset(t, sb.dial("more.example.com", 5432))
	sb.wantRecords("refuse tcp more.example.com:5432 not-listed")
	sb.apply(holding, control.Grant{ID: 1, Host: "db.example.com", Port: 5432})
	for seen := 0; seen < foldKey; seen++ { // the rest is folded
		sb.wantRecords("refuse tcp db.example.com:5432 denied")
	}
	sb.apply(holding)
	for {
		sb.dial("again.example.com", 5432)
		if r := sb.record(); r.Verdict == control.Hold {
			break
		}
	}
}

// A connection that waits and whose program goes away, by whatever end, makes room
// at once, and the log says so.
func TestHeldAndGone(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*sandbox, *net.TCPConn)
	}{
		{"closed", func(sb *sandbox, c *net.TCPConn) { sb.set(func() { sb.gone = true }); c.Close() }},
		{"closed after a request", func(sb *sandbox, c *net.TCPConn) {
			sb.set(func() { sb.gone = true })
			io.WriteString(c, "hello")
			c.Close()
		}},
		{"reset", func(_ *sandbox, c *net.TCPConn) { c.SetLinger(0); c.Close() }},
		{"half closed, and gone later", func(sb *sandbox, c *net.TCPConn) {
			c.CloseWrite()
			sb.wantNoDial()
			sb.set(func() { sb.gone = true })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sb := newSandbox(t, holding)
			conn := sb.dial("db.example.com", 5432)
			held := sb.wantRecords("hold tcp db.example.com:5432 not-listed")
			c.end(sb, conn)
			if r := sb.wantRecords("refuse tcp db.example.com:5432 cancelled"); r.Request != held.Request {
				t.Errorf("%s waited and %s was cancelled", held.Request, r.Request)
			}
		})
	}
	t.Run("all of them", func(t *testing.T) {
		sb := newSandbox(t, holding)
		sb.set(func() { sb.gone = true })
		var conns []*net.TCPConn
		for range maxHeld {
			conns = append(conns, sb.dial("db.example.com", 5432))
			sb.wantRecords("hold tcp db.example.com:5432 not-listed")
		}
		for _, c := range conns {
			c.Close()
			sb.wantRecords("refuse tcp db.example.com:5432 cancelled")
		}
		for {
			c := sb.dial("again.example.com", 5432)
			r := sb.record()
			if r.Verdict == control.Hold {
				break
			}
			c.Close()
		}
	})
}

// A program that has said all that it will, and waits, is still there: what it
// said is passed on when it is allowed.
func TestHeldAndHalfClosed(t *testing.T) {
	sb := newSandbox(t, holding)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	io.WriteString(c, "hello")
	c.CloseWrite()
	for asked := 0; asked == 0; sb.set(func() { asked = sb.asked }) {
		if len(sb.records) > 0 {
			t.Fatalf("it is over: %s", told(sb.record()))
		}
	}
	sb.apply(holding, control.Grant{ID: 1, Host: "db.example.com", Port: 5432, Allow: true})
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("it got %q, %v", got, err)
	}
	sb.wantRecords("allow tcp db.example.com:5432")
}

// How many begin to wait in a time is bounded: whoever comes and goes writes no
// more into the log by it.
func TestHeldAreBoundedInTime(t *testing.T) {
	sb := newSandbox(t, holding)
	sb.set(func() { sb.gone = true })
	for n := 0; ; n++ {
		if n == 10*maxHeld {
			t.Fatal("all of them wait")
		}
		c := sb.dial("db.example.com", 5432)
		r := sb.record()
		c.Close()
		if r.Verdict == control.Refuse {
			break
		}
		sb.wantRecords("refuse tcp db.example.com:5432 cancelled")
	}
}

// A counted grant is taken by as many connections as it has uses, and by those
// that are open for as long as they like.
func TestCountedGrant(t *testing.T) {
	sb := newSandbox(t, "egress: {rules: []}")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	grant := func(left int) control.Grant {
		return control.Grant{ID: 7, Host: "db.example.com", Port: 5432, Allow: true, Counted: true, Uses: left}
	}
	sb.set(func() { sb.uses[7] = 2 })
	sb.apply("egress: {rules: []}", grant(2))
	open := sb.dial("db.example.com", 5432)
	wantEcho(t, open, "one")
	wantEcho(t, sb.dial("db.example.com", 5432), "two")
	sb.wantRecords("allow tcp db.example.com:5432", "allow tcp db.example.com:5432")

	// The monitor has the last word, before the worker hears of it and after.
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantRecords("refuse tcp db.example.com:5432 not-listed")
	if a := sb.apply("egress: {rules: []}", grant(0)); a.Cut != 0 {
		t.Errorf("a grant that is used up cuts %d connections that it let through", a.Cut)
	}
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantRecords("refuse tcp db.example.com:5432 not-listed")
	wantEcho(t, open, "still")
	if a := sb.apply("egress: {rules: []}"); a.Cut != 2 {
		t.Errorf("a revoked grant cuts %d connections", a.Cut)
	}
}

// A grant that is used up is as if there were none: who comes then waits.
func TestUsedUpGrantHolds(t *testing.T) {
	sb := newSandbox(t, holding)
	sb.apply(holding, control.Grant{ID: 7, Host: "db.example.com", Port: 5432, Allow: true, Counted: true})
	sb.dial("db.example.com", 5432)
	sb.wantRecords("hold tcp db.example.com:5432 not-listed")
}

// An approval of one connection that waits is its alone.
func TestOnceIsForWhoWaits(t *testing.T) {
	sb := newSandbox(t, holding)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	first := sb.dial("db.example.com", 5432)
	sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	second := sb.dial("db.example.com", 5432)
	shown := sb.wantRecords("hold tcp db.example.com:5432 not-listed")
	sb.set(func() { sb.uses[3] = 1 })
	once := control.Grant{ID: 3, Host: "db.example.com", Port: 5432, Allow: true, Counted: true, Uses: 1, Request: shown.Request}
	sb.apply(holding, once)
	wantEcho(t, second, "mine")
	if r := sb.wantRecords("allow tcp db.example.com:5432"); r.Request != shown.Request {
		t.Errorf("%s was approved and %s passes", shown.Request, r.Request)
	}
	// Who was shown is gone: the next one may have it.
	sb.set(func() { sb.uses[4] = 1 })
	once.ID, once.Request = 4, "gone-1"
	sb.apply(holding, once)
	wantEcho(t, first, "now mine")
}

// A grant ends with its time, and so do the connections that it let through.
func TestGrantEnds(t *testing.T) {
	sb := newSandbox(t, "egress: {rules: []}")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	until := control.Now() + control.Uptime(1500*time.Millisecond)
	sb.apply("egress: {rules: []}", control.Grant{ID: 1, Host: "db.example.com", Port: 5432, Allow: true, Until: until})
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	wantReset(t, c)
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantRecords("allow tcp db.example.com:5432", "cut tcp db.example.com:5432 revoked", "refuse tcp db.example.com:5432 not-listed")
}

// With "enforce: audit" for all, what is not listed passes and says why it would
// not; what the checks of its protocol refuse, is refused.
func TestEnforceAudit(t *testing.T) {
	sb := newSandbox(t, "egress: {enforce: audit, rules: []}")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	wantEcho(t, sb.dial("db.example.com", 5432), "hello")
	if r := sb.wantRecords("allow tcp db.example.com:5432"); r.Would != "not-listed" || r.Rule != "enforce: audit" {
		t.Errorf("recorded %+v", r)
	}
	sb.listen("private.example.com", "10.0.0.1:5432")
	wantReset(t, sb.dial("private.example.com", 5432))
	sb.wantRecords("allow tcp private.example.com:5432", "refuse tcp private.example.com:5432 private-address")
}
