package dns

import (
	"bufio"
	"container/list"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// The synthetic addresses are 198.18.0.0/15, which RFC 2544 sets aside for
// benchmarks between networks and nobody routes. 198.18.0.0/24 is ours:
// 198.18.0.1 is the gateway, 198.18.0.2 the sandbox.
var (
	synthetic = netip.MustParsePrefix("198.18.0.0/15")
	ours      = netip.MustParsePrefix("198.18.0.0/24")
)

// block is a run of synthetic addresses.
type block struct {
	first netip.Addr
	size  int
}

var (
	pinnedBlock = block{netip.MustParseAddr("198.19.0.0"), limits.ListedNames}
	sharedBlock = block{netip.MustParseAddr("198.18.16.0"), limits.OtherNames}
)

const (
	// quarantine is how long an unlisted name keeps its address after the
	// last question or connection. Answers live 5 s; some clients keep
	// addresses far longer.
	quarantine = limits.Quarantine
	// maxJournal bounds the journal, in bytes: 65,536 pinned names of usual
	// length take 3 MiB. At it the journal is made short again. Where that cannot
	// be, names that have an address keep it and no other gets one, since a
	// restarted worker must know them all.
	maxJournal = limits.Journal
)

// ErrExhausted says that every synthetic address is in use.
var ErrExhausted = errors.New("cannot give another name an address: all are in use")

// Pool maps names to synthetic addresses and back. Its methods may be called
// from several goroutines.
type Pool struct {
	mu      sync.Mutex
	byName  map[string]*entry
	byAddr  map[netip.Addr]*entry
	pinned  int        // addresses given from pinnedBlock
	shared  int        // addresses ever given from sharedBlock
	recent  *list.List // entries of sharedBlock, the longest unused first
	journal *os.File   // nil: names do not outlive the process
	written int64      // bytes of the journal that count
	full    bool       // the journal cannot be made shorter
	now     func() time.Time
}

type entry struct {
	name   string
	addr   netip.Addr
	used   time.Time
	open   int           // connections
	recent *list.Element // nil: pinned
}

// OpenPool returns a pool that knows the names in journal, a file open for
// reading and appending, and appends the names it gives addresses to. A nil
// journal is not kept.
func OpenPool(journal *os.File) (*Pool, error) {
	p := &Pool{
		byName:  map[string]*entry{},
		byAddr:  map[netip.Addr]*entry{},
		recent:  list.New(),
		journal: journal,
		now:     time.Now,
	}
	if journal == nil {
		return p, nil
	}
	if err := p.replay(); err != nil {
		return nil, fmt.Errorf("cannot read the journal of names: %w", err)
	}
	return p, nil
}

// replay reads the journal, one "address name" a line; of two lines with one
// address the later counts. A line that makes no sense was torn by a crash,
// before its name was used in an answer.
func (p *Pool) replay() error {
	begin, err := unix.Seek(int(p.journal.Fd()), 0, unix.SEEK_DATA) // behind what compact gave back
	if err != nil {
		begin = 0 // there is no data yet, or the file system cannot tell
	}
	r := bufio.NewReader(io.NewSectionReader(p.journal, begin, 2*maxJournal))
	for {
		line, err := r.ReadString('\n')
		line = strings.TrimLeft(line, "\x00") // the rest of a block whose beginning was given back
		p.written += int64(len(line))
		if err == io.EOF {
			return p.sealTorn(line)
		}
		if err != nil {
			return err
		}
		if addr, name, ok := parseLine(strings.TrimSuffix(line, "\n")); ok {
			p.restore(addr, name)
		}
	}
}

// sealTorn ends a last line that lacks its end with a character that no name
// has, lest it be read as a shorter name the next time.
func (p *Pool) sealTorn(line string) error {
	if line == "" {
		return nil
	}
	return p.append("#\n")
}

// parseLine reads one line of the journal.
func parseLine(line string) (netip.Addr, string, bool) {
	text, name, _ := strings.Cut(line, " ")
	addr, err := netip.ParseAddr(text)
	if err != nil || !(pinnedBlock.holds(addr) || sharedBlock.holds(addr)) {
		return netip.Addr{}, "", false
	}
	normal, err := policy.NormalHost(name)
	if err != nil || normal != name {
		return netip.Addr{}, "", false
	}
	return addr, name, true
}

func (p *Pool) restore(addr netip.Addr, name string) {
	if old := p.byAddr[addr]; old != nil {
		p.forget(old)
	}
	e := p.enter(name, addr)
	if pinnedBlock.holds(addr) {
		p.pinned = max(p.pinned, pinnedBlock.index(addr)+1)
		return
	}
	p.shared = max(p.shared, sharedBlock.index(addr)+1)
	e.recent = p.recent.PushBack(e)
}

// Addr returns the address of name, a host name in normal form, and gives it
// one if it has none. A pinned name keeps it for as long as the pool lives,
// unless there are too many of them.
// The error is ErrExhausted, or the journal's.
func (p *Pool) Addr(name string, pin bool) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byName[name]
	pin = pin && p.pinned < pinnedBlock.size // else it shares the other block
	if e != nil && (!pin || e.recent == nil) {
		p.touch(e)
		return e.addr, nil
	}
	addr, err := p.free(pin)
	if err != nil {
		return netip.Addr{}, err
	}
	if err := p.note(addr, name); err != nil {
		return netip.Addr{}, err
	}
	if old := p.byAddr[addr]; old != nil {
		p.forget(old)
	}
	p.take(addr)
	e = p.enter(name, addr)
	if sharedBlock.holds(addr) {
		e.recent = p.recent.PushBack(e)
	}
	return addr, nil
}

// free returns an address that stands for no name, or for one that may be
// forgotten. pin needs room in its block.
func (p *Pool) free(pin bool) (netip.Addr, error) {
	if pin {
		return pinnedBlock.at(p.pinned), nil
	}
	if p.shared < sharedBlock.size {
		return sharedBlock.at(p.shared), nil
	}
	idle := p.now().Add(-quarantine)
	for el := p.recent.Front(); el != nil; el = el.Next() {
		e := el.Value.(*entry)
		if e.used.After(idle) {
			break
		}
		if e.open == 0 {
			return e.addr, nil
		}
	}
	return netip.Addr{}, ErrExhausted
}

// take counts an address as given.
func (p *Pool) take(addr netip.Addr) {
	if pinnedBlock.holds(addr) {
		p.pinned = max(p.pinned, pinnedBlock.index(addr)+1)
	} else {
		p.shared = max(p.shared, sharedBlock.index(addr)+1)
	}
}

// note writes an assignment into the journal before anybody hears of it.
func (p *Pool) note(addr netip.Addr, name string) error {
	if p.journal == nil {
		return nil
	}
	if p.written >= maxJournal && !p.compact() {
		return ErrExhausted
	}
	if err := p.append(addr.String() + " " + name + "\n"); err != nil {
		return fmt.Errorf("cannot write the journal of names: %w", err)
	}
	return nil
}

// compact makes the journal shorter, and tells whether it did: what counts is
// written once more at its end, and the disk gets back what stands before that
// (fallocate(2)). After a crash in between some lines stand there twice.
func (p *Pool) compact() bool {
	if p.full {
		return false
	}
	p.full = true
	end, err := p.journal.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	var lines strings.Builder
	write := func(e *entry) { fmt.Fprintf(&lines, "%s %s\n", e.addr, e.name) }
	for el := p.recent.Front(); el != nil; el = el.Next() { // the longest unused first, as replay takes them
		write(el.Value.(*entry))
	}
	for i := range p.pinned { // last: a name that has addresses of both kinds has this one
		if e := p.byAddr[pinnedBlock.at(i)]; e != nil {
			write(e)
		}
	}
	if lines.Len() > maxJournal/2 || p.append(lines.String()) != nil {
		return false
	}
	if err := unix.Fallocate(int(p.journal.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end); err != nil {
		return false
	}
	p.written, p.full = int64(lines.Len()), false
	return true
}

func (p *Pool) append(line string) error {
	n, err := p.journal.WriteString(line)
	p.written += int64(n)
	if err != nil && n > 0 {
		p.journal.WriteString("#\n") // what is there of the line means nothing
	}
	return err
}

func (p *Pool) enter(name string, addr netip.Addr) *entry {
	e := &entry{name: name, addr: addr, used: p.now()}
	p.byName[name], p.byAddr[addr] = e, e
	return e
}

func (p *Pool) forget(e *entry) {
	delete(p.byAddr, e.addr)
	if p.byName[e.name] == e { // it may have been pinned elsewhere since
		delete(p.byName, e.name)
	}
	if e.recent != nil {
		p.recent.Remove(e.recent)
	}
}

func (p *Pool) touch(e *entry) {
	e.used = p.now()
	if e.recent != nil {
		p.recent.MoveToBack(e.recent)
	}
}

// Name returns the name that addr stands for.
func (p *Pool) Name(addr netip.Addr) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byAddr[addr]
	if e == nil {
		return "", false
	}
	return e.name, true
}

// Open returns the name that addr stands for and keeps it so until Close.
func (p *Pool) Open(addr netip.Addr) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byAddr[addr]
	if e == nil {
		return "", false
	}
	e.open++
	p.touch(e)
	return e.name, true
}

// Close ends what one successful Open began.
func (p *Pool) Close(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.byAddr[addr]; e != nil && e.open > 0 {
		e.open--
		p.touch(e)
	}
}

// Synthetic tells whether addr lies in the range that stands for names.
func Synthetic(addr netip.Addr) bool {
	return synthetic.Contains(addr) && !ours.Contains(addr)
}

func (b block) at(i int) netip.Addr {
	a := b.first.As4()
	i += int(a[2])<<8 | int(a[3])
	return netip.AddrFrom4([4]byte{a[0], a[1] + byte(i>>16), byte(i >> 8), byte(i)})
}

func (b block) index(addr netip.Addr) int {
	f, a := b.first.As4(), addr.As4()
	return (int(a[1])-int(f[1]))<<16 + (int(a[2])-int(f[2]))<<8 + int(a[3]) - int(f[3])
}

func (b block) holds(addr netip.Addr) bool {
	if !addr.Is4() || !synthetic.Contains(addr) {
		return false
	}
	i := b.index(addr)
	return 0 <= i && i < b.size
}

// CloseJournal closes the journal; the pool gives no more addresses.
func (p *Pool) CloseJournal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.journal != nil {
		p.journal.Close()
	}
}
