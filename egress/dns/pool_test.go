package dns

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// journal opens the journal as the monitor does.
func journal(t testing.TB, file string) *os.File {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clocked returns a pool and the clock that it looks at.
func clocked(t testing.TB, j *os.File) (*Pool, *time.Time) {
	t.Helper()
	p, err := OpenPool(j)
	check(t, err)
	now := time.Unix(1e9, 0)
	p.now = func() time.Time { return now }
	return p, &now
}

func give(t testing.TB, p *Pool, name string, pin bool) netip.Addr {
	t.Helper()
	a, err := p.Addr(name, pin)
	check(t, err)
	return a
}

// One name, one address, and back; ours is never given.
func TestNamesAndAddresses(t *testing.T) {
	p, _ := clocked(t, nil)
	seen := map[netip.Addr]string{}
	for i := range 1000 {
		name := fmt.Sprintf("n%d.example", i)
		a := give(t, p, name, i%2 == 0)
		if seen[a] != "" || !Synthetic(a) {
			t.Fatalf("%s got %s, which is %q's", name, a, seen[a])
		}
		seen[a] = name
		if b := give(t, p, name, i%2 == 0); b != a {
			t.Fatalf("%s is now at %s", name, b)
		}
	}
	for a, name := range seen {
		if got, ok := p.Name(a); !ok || got != name {
			t.Errorf("%s stands for %q, want %q", a, got, name)
		}
	}
	if Synthetic(netip.MustParseAddr("198.18.0.1")) || Synthetic(netip.MustParseAddr("8.8.8.8")) {
		t.Error("the gateway or the world is taken for a name")
	}
}

// A name that becomes listed moves out of the shared pool; its old address
// means it still.
func TestListedLater(t *testing.T) {
	p, _ := clocked(t, nil)
	was := give(t, p, "api.example", false)
	is := give(t, p, "api.example", true)
	if was == is || !pinnedBlock.holds(is) {
		t.Errorf("the name stayed at %s", is)
	}
	for _, a := range []netip.Addr{was, is} {
		if name, _ := p.Name(a); name != "api.example" {
			t.Errorf("%s stands for %q", a, name)
		}
	}
	if again := give(t, p, "api.example", false); again != is {
		t.Errorf("when it is no longer listed it moves to %s", again)
	}
}

// A flood of unlisted names takes turns in its own pool: listed names are not
// touched, nor addresses in use, nor any before its quarantine ends.
func TestFloodOfNames(t *testing.T) {
	p, now := clocked(t, nil)
	listed := give(t, p, "api.example", true)
	first := give(t, p, "first.example", false)
	used := give(t, p, "used.example", false)
	if _, ok := p.Open(used); !ok {
		t.Fatal("an address that was given is unknown")
	}
	for i := range sharedBlock.size - 2 {
		give(t, p, fmt.Sprintf("n%d.example", i), false)
	}
	if _, err := p.Addr("one.too.many", false); err != ErrExhausted {
		t.Fatalf("one name too many: %v", err)
	}
	give(t, p, "api2.example", true) // listed names have room

	*now = now.Add(quarantine + time.Second)
	if a := give(t, p, "second.example", false); a != first {
		t.Errorf("the longest unused address is %s, %s was given", first, a)
	}
	if a := give(t, p, "third.example", false); a == used {
		t.Error("an address was given away while a connection used it")
	}
	if _, ok := p.byName["first.example"]; ok {
		t.Error("the old name still has the address")
	}
	p.Close(used)
	*now = now.Add(quarantine + time.Second)
	for i := range sharedBlock.size {
		give(t, p, fmt.Sprintf("m%d.example", i), false)
	}
	if name, _ := p.Name(used); name == "used.example" {
		t.Error("an address is kept for a connection that has ended")
	}
	if name, _ := p.Name(listed); name != "api.example" {
		t.Errorf("a listed name's address stands for %q", name)
	}
}

// When even pinned names are too many, which a wildcard makes possible, they
// share the other pool and still work.
func TestPinnedNamesOverflow(t *testing.T) {
	p, _ := clocked(t, nil)
	p.pinned = pinnedBlock.size
	a := give(t, p, "x.wild.example", true)
	if name, _ := p.Name(a); name != "x.wild.example" || !sharedBlock.holds(a) {
		t.Errorf("%s stands for %q", a, name)
	}
	if b := give(t, p, "x.wild.example", true); b != a {
		t.Errorf("asked again it moves to %s", b)
	}
}

// A hundred thousand names below a wildcard, the longest that there are, take no
// more memory than the pool has addresses, nor do they when it is opened again.
func TestMemoryOfNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	var p *Pool
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"given", func() {
			p, _ = clocked(t, journal(t, file))
			for i := range 100_000 {
				name := fmt.Sprintf("n%06d.%s", i, strings.TrimSuffix(long253[8:], "."))
				if _, err := p.Addr(name, true); err != nil && err != ErrExhausted {
					t.Fatal(err)
				}
			}
		}},
		{"opened again", func() { p, _ = clocked(t, journal(t, file)) }},
	} {
		p = nil
		before := heap()
		c.do()
		names, took := len(p.byAddr), heap()-before
		t.Logf("%s: %d names take %d KiB, and %d KiB of the disk", c.name, names, took>>10, p.written>>10)
		if took > 48<<20 || names < 60_000 || names > pinnedBlock.size+sharedBlock.size {
			t.Errorf("%s: %d names take %d bytes", c.name, names, took)
		}
	}
	goruntime.KeepAlive(p)
}

// heap is how much memory is in use.
func heap() int64 {
	goruntime.GC()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A pool opened again knows what was given, also after the last line was torn.
func TestJournal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	p, now := clocked(t, journal(t, file))
	a := give(t, p, "api.example", true)
	b := give(t, p, "new.example", false)
	for i := range sharedBlock.size - 1 {
		give(t, p, fmt.Sprintf("n%d.example", i), false)
	}
	*now = now.Add(2 * quarantine)
	c := give(t, p, "later.example", false) // takes b over
	if b != c {
		t.Fatalf("%s was given, want %s", c, b)
	}
	torn := journal(t, file)
	_, err := torn.WriteString("198.19.0.77 short.exam")
	check(t, err)

	for range 2 { // the second time the torn line has an end
		p, _ = clocked(t, journal(t, file))
		for addr, want := range map[netip.Addr]string{a: "api.example", c: "later.example"} {
			if name, _ := p.Name(addr); name != want {
				t.Errorf("%s stands for %q, want %q", addr, name, want)
			}
		}
		if name, ok := p.Name(netip.MustParseAddr("198.19.0.77")); ok {
			t.Errorf("a torn line gave the name %q", name)
		}
	}
	if d := give(t, p, "next.example", true); d != a.Next() {
		t.Errorf("the next address is %s, want %s", d, a.Next())
	}
}

// However many names come and go, the journal takes as much of the disk as those
// that have an address: a sandbox that lives for months does not run out of it.
// Whoever opens it knows them all, and which is unused for longest.
func TestJournalIsMadeShort(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	p, now := clocked(t, journal(t, file))
	give(t, p, "both.example", false)
	give(t, p, "both.example", true)
	for round := range 4 {
		for i := range sharedBlock.size - 100 { // some of the last round stay
			give(t, p, fmt.Sprintf("r%d-n%d.example", round, i), false)
			*now = now.Add(time.Second)
		}
		p.written = maxJournal
		give(t, p, fmt.Sprintf("r%d.api.example", round), true)
		st, err := os.Stat(file)
		check(t, err)
		if disk := st.Sys().(*syscall.Stat_t).Blocks * 512; p.written > 256<<10 || disk > p.written+8192 {
			t.Fatalf("round %d: the journal is %d bytes long, and takes %d of the disk", round, p.written, disk)
		}
		again, then := clocked(t, journal(t, file))
		if got, want := content(again), content(p); got != want || again.written != p.written {
			t.Fatalf("round %d: opened again it is %d bytes that say\n%s\nwant %d\n%s", round, again.written, got, p.written, want)
		}
		for _, e := range again.byAddr {
			e.used = *now // it was opened by the real clock
		}
		*then = now.Add(2 * quarantine)
		p, now = again, then
	}
}

// content is all that a pool knows.
func content(p *Pool) string {
	var s strings.Builder
	for el := p.recent.Front(); el != nil; el = el.Next() {
		fmt.Fprintln(&s, el.Value.(*entry).addr, el.Value.(*entry).name)
	}
	for _, name := range slices.Sorted(maps.Keys(p.byName)) {
		fmt.Fprintln(&s, name, p.byName[name].addr)
	}
	fmt.Fprintln(&s, len(p.byAddr), p.pinned, p.shared)
	return s.String()
}

// A journal that cannot be made shorter gives no more names, and keeps those it
// has.
func TestFullJournal(t *testing.T) {
	p, _ := clocked(t, journal(t, filepath.Join(t.TempDir(), "names")))
	a := give(t, p, "api.example", true)
	p.written, p.full = maxJournal, true
	if _, err := p.Addr("new.example", true); err != ErrExhausted {
		t.Errorf("a name more: %v", err)
	}
	if b := give(t, p, "api.example", true); b != a {
		t.Errorf("the name moved to %s", b)
	}
}

// A name whose assignment cannot be written is not given.
func TestUnwritableJournal(t *testing.T) {
	f := journal(t, filepath.Join(t.TempDir(), "names"))
	p, _ := clocked(t, f)
	f.Close()
	if a, err := p.Addr("api.example", true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%s was given: %v", a, err)
	}
	if len(p.byName)+len(p.byAddr) > 0 {
		t.Error("the name is remembered all the same")
	}
}

// FuzzJournal holds the law of the journal: whatever is in it, each address
// stands for one name in normal form, names from an untorn line are known, and
// the next name gets an address that was free.
func FuzzJournal(f *testing.F) {
	f.Add("198.19.0.0 api.example\n198.18.16.0 a.example\n")
	f.Add("198.19.0.0 api.example\n198.19.0.0 b.example\n198.19.0.1 torn.exa")
	f.Add("198.18.0.1 gateway.example\n127.0.0.1 localhost\n::1 x\n#\n")
	f.Add("198.19.255.255 last.example\n198.18.31.255 last2.example\n")
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "names")
		check(t, os.WriteFile(file, []byte(text), 0o600))
		p, err := OpenPool(journal(t, file))
		check(t, err)
		for addr, e := range p.byAddr {
			if e.addr != addr || !Synthetic(addr) || !strings.Contains(text, addr.String()+" "+e.name+"\n") {
				t.Fatalf("%s stands for %q", addr, e.name)
			}
		}
		known := len(p.byAddr)
		a, err := p.Addr("fresh.fuzz.example", true)
		if err == ErrExhausted { // somebody took the last addresses first
			return
		}
		check(t, err)
		if _, had := p.byName["fresh.fuzz.example"]; !had || len(p.byAddr) > known+1 {
			t.Fatalf("%s took another name's place", a)
		}
		again, err := OpenPool(journal(t, file))
		check(t, err)
		for addr, e := range p.byAddr {
			if name, _ := again.Name(addr); name != e.name {
				t.Fatalf("opened again, %s stands for %q, want %q", addr, name, e.name)
			}
		}
	})
}
