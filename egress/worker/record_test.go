package worker

import (
	"fmt"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nemoclaw/egress/control"
)

// monitored returns a recorder, and the messages that its monitor gets.
func monitored(t *testing.T) (*recorder, *control.Conn, <-chan control.Records) {
	t.Helper()
	monitor, theirs, err := control.Pair()
	check(t, err)
	conn, err := control.FromFile(theirs)
	check(t, err)
	r := newRecorder(t.Context(), conn)
	var wg sync.WaitGroup
	got := make(chan control.Records, 1000)
	wg.Go(func() {
		for {
			var m control.ToMonitorFromWorker
			if _, err := monitor.Recv(&m); err != nil {
				return
			}
			got <- *m.Records
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
		monitor.Close()
	})
	return r, monitor, got
}

func next(t *testing.T, got <-chan control.Records) control.Records {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(patience):
		t.Fatal("no records came")
	}
	panic("unreachable")
}

// While one message is unanswered the next gathers: what many connections
// decide meanwhile travels together, numbered through, allowed ones first.
func TestRecordsTravelTogether(t *testing.T) {
	r, _, got := monitored(t)
	var wg sync.WaitGroup
	write := func(f func(control.Record) error, host string) {
		wg.Go(func() {
			if err := f(control.Record{Host: host}); err != nil {
				t.Error(err)
			}
		})
	}
	write(r.write, "first")
	if m := next(t, got); m.N != 1 || len(m.List) != 1 {
		t.Fatalf("the first message is %+v", m)
	}
	for i := range 10 {
		write(r.refuse, fmt.Sprint("refused", i))
		write(r.write, fmt.Sprint("allowed", i))
	}
	for { // until all have decided
		r.mu.Lock()
		n := len(r.urgent) + len(r.others)
		r.mu.Unlock()
		if n == 20 {
			break
		}
		goruntime.Gosched()
	}
	r.written(&control.Written{N: 1})
	m := next(t, got)
	if m.N != 21 || len(m.List) != 20 {
		t.Fatalf("the second message holds %d records up to %d", len(m.List), m.N)
	}
	for i, rec := range m.List {
		if want := []string{"allowed", "refused"}[i/10]; !strings.HasPrefix(rec.Host, want) {
			t.Errorf("record %d is of %q", i, rec.Host)
		}
	}
	r.written(&control.Written{N: 21})
	wg.Wait()
}

// An answer is for the records up to its number; a fault is told to each.
func TestAnswersToRecords(t *testing.T) {
	r, _, got := monitored(t)
	r.note(control.Record{})
	next(t, got)
	results := make([]chan error, 3)
	for i := range results {
		results[i] = make(chan error, 1)
		r.add(pending{done: results[i]}, &r.urgent)
	}
	r.written(&control.Written{N: 1})
	if m := next(t, got); m.N != 4 {
		t.Fatalf("the second message ends with %d", m.N)
	}
	r.written(&control.Written{N: 3})
	r.written(&control.Written{N: 4, Fault: "disk full"})
	for i, want := range []string{"<nil>", "<nil>", "disk full"} {
		if err := <-results[i]; fmt.Sprint(err) != want {
			t.Errorf("record %d: %v, want %s", i, err, want)
		}
	}
}

// However long what a program says about itself is, a message fits.
func TestMessagesFit(t *testing.T) {
	r, _, got := monitored(t)
	r.note(control.Record{})
	next(t, got)
	for range 100 {
		r.note(control.Record{Detail: strings.Repeat("\x01", 1<<20), Rule: strings.Repeat("\x00", 4096)})
	}
	n := uint64(1)
	for n < 101 {
		r.written(&control.Written{N: n})
		m := next(t, got)
		if len(m.List) > maxBatch/4096 {
			t.Fatalf("%d such records in one message", len(m.List))
		}
		n = m.N
	}
}

// Twenty refusals a second of one host and port are told one by one; the
// others as one line a second, with their number.
func TestFolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(t.Context(), nil)
		r.sent = []pending{{}} // one is on its way: nothing is sent
		refuse := func(host string, n int) {
			for range n {
				r.noteRefusal(control.Record{Verdict: control.Refuse, Host: host, Port: 443})
			}
		}
		take := func() []pending {
			r.mu.Lock()
			defer r.mu.Unlock()
			taken := r.others
			r.others = nil
			return taken
		}
		seconds := func(n int) {
			<-time.After(time.Duration(n) * time.Second)
			synctest.Wait()
		}
		counts := func() string {
			lines, more := map[string]int{}, map[string]int{}
			for _, p := range take() {
				lines[p.record.Host]++
				more[p.record.Host] += p.record.Count
			}
			s := ""
			for _, host := range []string{"a", "b", ""} {
				if lines[host] > 0 {
					s += fmt.Sprintf("%q:%d lines+%d ", host, lines[host], more[host])
				}
			}
			return strings.TrimSpace(s)
		}
		step := func(want string) {
			t.Helper()
			if got := counts(); got != want {
				t.Errorf("recorded %s, want %s", got, want)
			}
		}
		refuse("a", 50)
		refuse("b", 5)
		step(`"a":20 lines+0 "b":5 lines+0`)
		seconds(2)
		step(`"a":1 lines+30`)
		refuse("a", 10)
		step(`"a":10 lines+0`)
		seconds(2)
		for i := range 2 * maxFolds { // every port of every host
			refuse(fmt.Sprint("host", i), 1)
		}
		if n := len(take()); n > foldAll {
			t.Errorf("%d refusals in one second are told one by one", n)
		}
		seconds(2)
		sum := foldAll
		for _, p := range take() {
			sum += p.record.Count
		}
		if sum != 2*maxFolds {
			t.Errorf("%d refusals are told as %d", 2*maxFolds, sum)
		}
	})
}
