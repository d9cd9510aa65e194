package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
)

// Uptime is a time since the kernel's boot that no change of the clock moves
// and that counts while the machine sleeps (CLOCK_BOOTTIME, clock_gettime(2)).
// What is written down with it means the same to every process until reboot.
type Uptime time.Duration

// Now returns the uptime.
func Now() Uptime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel since 2.6.39 has it
	}
	return Uptime(ts.Nano())
}

// Decisions are what an operator decided for one sandbox, and what else must
// outlive its monitor.
type Decisions struct {
	Last   uint64            `json:"last"` // ID of the latest grant
	Grants []Grant           `json:"grants"`
	Began  map[string]Uptime `json:"began,omitempty"` // as in Rules
}

// Bounds of what is kept.
const (
	MaxGrants = limits.Grants
	MaxBegan  = 10_000
	maxFile   = 16 << 20 // bytes
)

// ReadDecisions reads dir's decisions; none have been made if there is no file.
func ReadDecisions(dir string) (*Decisions, error) {
	file := filepath.Join(dir, GrantsFile)
	src, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return new(Decisions), nil
	}
	if err != nil {
		return nil, err
	}
	d, err := parseDecisions(src)
	if err != nil {
		return nil, fmt.Errorf("cannot understand %s: %w", file, err)
	}
	return d, nil
}

// parseDecisions takes what WriteDecisions wrote, and nothing else: a grant
// that is understood by halves could allow more than was decided.
func parseDecisions(src []byte) (*Decisions, error) {
	if len(src) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	d := new(Decisions)
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows the decisions")
	}
	if len(d.Grants) > MaxGrants || len(d.Began) > MaxBegan {
		return nil, errors.New("it holds more than was ever written")
	}
	seen := map[uint64]bool{}
	for i := range d.Grants {
		g := &d.Grants[i]
		switch {
		case g.ID == 0 || g.ID > d.Last || seen[g.ID]:
			return nil, fmt.Errorf("grant %d is numbered %d of %d", i, g.ID, d.Last)
		case g.Host == "" || g.Port == 0:
			return nil, fmt.Errorf("grant %d names no host and port", g.ID)
		case g.Uses < 0 || g.Until < 0 || !g.Counted && (g.Uses != 0 || g.Request != ""):
			return nil, fmt.Errorf("grant %d has bounds that nobody gave", g.ID)
		}
		seen[g.ID] = true
	}
	return d, nil
}

// WriteDecisions replaces dir's decisions whole; they are on the disk when it
// returns.
func WriteDecisions(dir string, d *Decisions) error {
	return writeSynced(filepath.Join(dir, GrantsFile), d)
}
