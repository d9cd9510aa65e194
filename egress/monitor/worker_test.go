package monitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// There is no worker before something waits for it, in whichever of the queues.
// Rules that come before are in force at once: it begins with them.
func TestWorkerStartsOnDemand(t *testing.T) {
	for _, q := range queues {
		t.Run(q.network+" "+q.addr, func(t *testing.T) {
			s := newSandbox(t)
			if a := s.attach(); a.Fault != "" {
				t.Fatal(a.Fault)
			}
			s.commit()
			s.save(onlyExample + "    - host: late.example.org\n      port: 443\n")
			var reloaded control.Reloaded
			if code := s.operator("POST", "/v1/reload", "", &reloaded); code != 200 || reloaded.Generation != 2 {
				t.Errorf("a reload without a worker: %d, %+v", code, reloaded)
			}
			if st := s.status(); st.Worker != 0 || st.Restarts != 0 || st.Generation != 2 {
				t.Errorf("before the first connection: %+v", st)
			}
			s.knock(q.network, q.addr)
			w := s.worker()
			if r := w.apply(); r.Generation != 2 || !strings.Contains(string(r.Policy), "late.example.org") {
				t.Errorf("the first worker is told %+v", r)
			}
			w.record(control.Record{Verdict: control.Refuse, Host: "x.example.org", Port: 443, Reason: "not-listed"})
			if st := s.status(); st.Worker == 0 {
				t.Error("the status tells of no worker")
			}
		})
	}
}

// Where no worker can be had, what waits is refused unread, and the log says so.
func TestNoWorkerCanBeHad(t *testing.T) {
	for _, program := range []string{"/bin/false", "/no/such/worker"} {
		t.Run(program, func(t *testing.T) {
			s := newSandbox(t, program)
			if a := s.attach(); a.Fault != "" {
				t.Fatal(a.Fault)
			}
			s.commit()
			s.knock("udp", queues[2].addr)
			s.must(in(s.inner, func() error {
				c, err := net.Dial("tcp", queues[1].addr)
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					return fmt.Errorf("a connection that nobody decides ends with %v", err)
				}
				return nil
			}))
			s.knock("udp", queues[control.ReportsFile].addr)
			s.awaitLine(`"kind":"worker"`, "no worker can be started: 1 connections and ")
			s.awaitLine(`"kind":"worker"`, "no worker can be started: ", " and 1 packets were refused")
			if st := s.status(); st.Worker != 0 || st.Restarts < hopeless || st.Refused == 0 {
				t.Errorf("the status: %+v", st)
			}
		})
	}
}

// A worker that dies is replaced by one with the same listeners, the same
// rules and the same decisions, and the log says so.
func TestWorkerRestart(t *testing.T) {
	s, first := up(t)
	go s.operator("POST", "/v1/decisions", `{"verb":"approve","host":"x.example.org","port":22}`, new(control.Decided))
	first.apply()
	s.awaitLine(`"kind":"decision"`)
	first.record(control.Record{Verdict: control.Allow, Host: "api.example.org", Port: 443})
	before := s.status()

	first.kill()
	second := s.worker()
	r := second.apply()
	if r.Generation != 2 || len(r.Grants) != 1 || r.Grants[0].Host != "x.example.org" || !r.Grants[0].Allow {
		t.Errorf("the next worker is told %+v", r)
	}
	s.awaitLine(`"kind":"worker"`, "worker ended with 1 open connections")
	if st := s.status(); st.Restarts != 1 || st.Worker == before.Worker || st.Open != 0 {
		t.Errorf("restarts %d, worker %d as before, %d open", st.Restarts, st.Worker, st.Open)
	}

	// Numbers of records begin anew with each worker.
	second.record(control.Record{Verdict: control.Refuse, Host: "y.example.org", Port: 443, Reason: "not-listed"})
}

// A worker that does not put rules into force within a second is killed: what
// they revoke must not go on, and with it it does not.
func TestStuckWorkerIsKilled(t *testing.T) {
	s, stuck := up(t)
	answer := make(chan int, 1)
	go func() {
		answer <- s.operator("POST", "/v1/decisions", `{"verb":"deny","host":"api.example.org","port":443}`, new(control.Decided))
	}()
	if m := stuck.next(); m.Rules == nil {
		t.Fatalf("the monitor said %+v", m)
	}
	s.worker().apply() // although the first never ended by itself
	if code := <-answer; code != 200 {
		t.Errorf("the operator is answered %d", code)
	}
}

// Without its line in the log nothing is allowed: the worker is told so.
func TestUnwritableLog(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a tmpfs is needed: %v", err)
		}
		t.Skipf("a tmpfs is needed: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := newSandbox(t)
	s.log = dir + "/web.jsonl"
	if a := s.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	s.knock("tcp", queues[0].addr)
	w := s.worker()
	w.apply()
	s.commit()

	// The room that the log keeps for itself is used up first.
	ballast, err := os.Create(dir + "/ballast")
	s.must(err)
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	ballast.Close()
	flood := control.Record{Verdict: control.Refuse, Host: "y.example.org", Port: 443, Detail: strings.Repeat("x", maxText)}
	var told control.Written
	for range 4096 {
		if told = w.record(flood); told.Fault != "" {
			break
		}
	}
	if told.Fault == "" {
		t.Fatal("a full disk took four megabytes")
	}
	allow := control.Record{Verdict: control.Allow, Host: "api.example.org", Port: 443, Detail: strings.Repeat("x", maxText)}
	for range 16 { // what room is left in the last page
		told = w.record(allow)
	}
	if told.Fault == "" {
		t.Error("a connection may pass without a line in the log")
	}
	if st := s.status(); st.AuditFault == "" {
		t.Error("status does not say that the log cannot be written")
	}

	// With room again, everything is as before.
	s.must(os.Remove(dir + "/ballast"))
	if told := w.record(allow); told.Fault != "" {
		t.Errorf("with room again: %s", told.Fault)
	}
	if st := s.status(); st.AuditFault != "" {
		t.Errorf("with room again the status says %q", st.AuditFault)
	}
	s.stop()
	s.must(s.waitEnd())
	s.checkLog()
}

func TestParseStat(t *testing.T) {
	tail := " S 7 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for _, c := range []struct {
		text string
		name string
		ok   bool
	}{
		{"1 (sh)" + tail, "sh", true},
		{"1 (a) b (c)" + tail, "a) b (c", true},
		{"1 (line\nfeed)" + tail, "line\nfeed", true},
		{"1 (sh) S 7", "", false},
		{"1 sh S 7", "", false},
		{"", "", false},
	} {
		st, err := parseStat([]byte(c.text))
		if (err == nil) != c.ok || c.ok && (st.name != c.name || st.ppid != 7 || st.start != 4242) {
			t.Errorf("%q is %+v, %v", c.text, st, err)
		}
	}
}
