package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// sample is what a gateway takes at one time. What /proc tells is enough: a
// goroutine that leaks holds a socket, or memory.
type sample struct {
	at              time.Duration
	monitor, worker taken
}

type taken struct{ mib, descriptors, sockets, threads int }

func take(t *testing.T, pid int) taken {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	return taken{resident(t, pid), descriptors(t, pid), sockets(pid), len(threads)}
}

func (k taken) String() string {
	return fmt.Sprintf("%3d MiB %4d descriptors %4d sockets %3d threads", k.mib, k.descriptors, k.sockets, k.threads)
}

// soak is a sandbox under load for a long time.
type soak struct {
	*earth
	b     *box
	stop  chan struct{}
	quiet sync.RWMutex // held for writing while a worker dies: what is lost then is not counted
	asked atomic.Int64
}

// For as long as NEMOCLAW_SOAK says (make soak: ten minutes) a sandbox does many
// things at once, its policy is saved again and again, and in the first half its
// worker is killed. No allowed connection is lost but with a worker, nothing
// leaves that is not allowed, and what the gateway takes does not grow.
func TestSoak(t *testing.T) {
	length := 4 * time.Second
	if text := os.Getenv("NEMOCLAW_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	e := newEarth(t)
	b, main := e.crowd()
	s := &soak{earth: e, b: b, stop: make(chan struct{})}
	main.want("ok 100", "keep stays 100 echo.good.example:7000")
	var load sync.WaitGroup
	for i := range 4 {
		k := b.exec()
		load.Go(func() { s.work(k, i) })
	}
	load.Go(s.reload)

	begun := time.Now()
	tick := time.NewTicker(max(length/120, 100*time.Millisecond))
	defer tick.Stop()
	var samples []sample
	kills, calm, nextKill := 0, 0, length/10
	for at := time.Duration(0); (at < length || calm < 8) && !t.Failed(); at = time.Since(begun) {
		<-tick.C
		if at > nextKill && nextKill < length/2 {
			s.killWorker(main)
			kills, nextKill = kills+1, time.Since(begun)+length/10
		}
		if got := main.ask("still stays"); got != "ok 100" {
			t.Errorf("of 100 connections that stay: %s", got)
		}
		now := sample{at, take(t, b.monitor()), take(t, b.worker())}
		samples = append(samples, now)
		if inCalm(at, length) {
			calm++
		}
		if len(samples)%6 == 1 {
			t.Logf("%5.0fs  monitor %s  worker %s  %d asked", at.Seconds(), now.monitor, now.worker, s.asked.Load())
		}
		s.lookAtTheWire()
	}
	close(s.stop)
	load.Wait()
	main.want("ok", "release stays")
	waitFor(t, func() bool { return b.status().Open == 0 })
	t.Logf("%d connections and questions, generation %d, %d workers killed", s.asked.Load(), b.status().Generation, kills)
	wantNoGrowth(t, length, samples)
	if files, _ := filepath.Glob(b.path("log/*.jsonl")); len(files) == 1 {
		if got := b.ctl("audit", "verify", files[0]); got.code != 0 {
			t.Errorf("the chain: %s", got)
		}
	}
}

// work asks for what is allowed, which must be given, and for what is not.
func (s *soak) work(k *talk, who int) {
	addr := strings.TrimPrefix(k.ask("resolve echo.good.example"), "ok ")
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			k.ask("release passing")
			return
		case <-pace.C:
		}
		verb, want := "dial "+addr+":7000 hello", "ok hello"
		switch n % 20 {
		case 3:
			verb, want = "tls api.good.example:443 api.good.example", "ok 200 OK hello from api.good.example"
		case 7:
			verb, want = "http web.good.example:80 web.good.example", "ok 200 OK hello from the web"
		case 11:
			verb, want = "dial "+s.addr["evil.example"].String()+":7000", "ECONNRESET"
		case 13:
			verb, want = "keep passing 10 "+addr+":7000", "ok 10"
		case 14:
			verb, want = "release passing", "ok"
		case 17:
			verb, want = fmt.Sprintf("dial n%d.w%d.evil.example:7000", n%1000, who), "ECONNRESET"
		}
		s.quiet.RLock()
		got := k.ask(verb)
		s.quiet.RUnlock()
		if s.asked.Add(1); !strings.HasPrefix(got, want) {
			s.t.Errorf("%s: %s, want %s", verb, got, want)
			return
		}
	}
}

// reload saves the policy several times a second, with another rule each time.
func (s *soak) reload() {
	pace := time.NewTicker(200 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		case <-pace.C:
			s.b.policy(s.policy(s.Uplink(), append(slices.Clone(allowed), fmt.Sprintf("h%d.example 443", n))...))
		}
	}
}

// killWorker ends the worker between two connections, and awaits the next one.
func (s *soak) killWorker(main *talk) {
	s.quiet.Lock()
	defer s.quiet.Unlock()
	kill(s.t, s.b.worker())
	main.want("ok 100 0", "over stays")
	main.want("ok", "release stays")
	waitFor(s.t, func() bool { return main.ask("dial echo.good.example:7000 hello") == "ok hello" })
	main.want("ok 100", "keep stays 100 echo.good.example:7000")
}

// lookAtTheWire holds what left against what may, and forgets it.
func (s *soak) lookAtTheWire() {
	may := map[netip.AddrPort]bool{netip.AddrPortFrom(world.Nameserver, 53): true}
	for _, host := range allowed {
		name, port, _ := strings.Cut(host, " ")
		n, _ := strconv.Atoi(port)
		may[netip.AddrPortFrom(s.addr[name], uint16(n))] = true
	}
	for _, p := range s.sent() {
		if !may[p.to] || p.proto != unix.IPPROTO_TCP && p.proto != unix.IPPROTO_UDP {
			s.t.Errorf("a packet left: %s", p)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.served {
		if name != "echo.good.example" {
			s.t.Errorf("%s was reached", name)
		}
	}
	s.packets, s.served = nil, nil
}

// inCalm tells whether no worker has died for a while, and none will.
func inCalm(at, length time.Duration) bool { return at > length*6/10 }

// wantNoGrowth compares the beginning and the end of the time in which no worker
// died: the medians of a quarter of its samples each.
func wantNoGrowth(t *testing.T, length time.Duration, samples []sample) {
	t.Helper()
	var half []sample
	for _, s := range samples {
		if inCalm(s.at, length) {
			half = append(half, s)
		}
	}
	n := max(len(half)/4, 2)
	for _, c := range []struct {
		name    string
		of      func(sample) int
		mayGrow int
	}{
		{"monitor's MiB", func(s sample) int { return s.monitor.mib }, 6},
		{"monitor's descriptors", func(s sample) int { return s.monitor.descriptors }, 8},
		{"monitor's threads", func(s sample) int { return s.monitor.threads }, 8},
		{"worker's MiB", func(s sample) int { return s.worker.mib }, 8},
		{"worker's sockets", func(s sample) int { return s.worker.sockets }, 100}, // some connections are always under way
		{"worker's descriptors", func(s sample) int { return s.worker.descriptors }, 300},
		{"worker's threads", func(s sample) int { return s.worker.threads }, 8},
	} {
		first, last := median(half[:n], c.of), median(half[len(half)-n:], c.of)
		t.Logf("%-22s %4d at first, %4d at last", c.name, first, last)
		if last > first+c.mayGrow {
			t.Errorf("the %s grew from %d to %d", c.name, first, last)
		}
	}
}

func median(samples []sample, of func(sample) int) int {
	var values []int
	for _, s := range samples {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}
