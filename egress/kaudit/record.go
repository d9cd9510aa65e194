package kaudit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The types of records that Open's socket lets through (linux/audit.h).
const (
	Syscall        = 1300 // the process behind the other records of its event
	Seccomp        = unix.AUDIT_SECCOMP
	LandlockAccess = unix.AUDIT_LANDLOCK_ACCESS
	LandlockDomain = unix.AUDIT_LANDLOCK_DOMAIN
)

// Record is one record of the kernel's. Its fields are read when they are asked
// for: in a flood most are not.
type Record struct {
	Type   uint16
	Time   time.Time // to the millisecond
	Serial uint64    // joins the records of one event
	text   string
}

var errRecord = errors.New("cannot understand an audit record")

// Parse reads the body of one netlink message:
//
//	audit(SECONDS.MILLISECONDS:SERIAL): NAME=VALUE NAME="VALUE" ...
func Parse(typ uint16, body []byte) (Record, error) {
	body, ok := bytes.CutPrefix(bytes.TrimRight(body, "\x00\n"), []byte("audit("))
	if !ok {
		return Record{}, errRecord
	}
	stamp, text, ok := bytes.Cut(body, []byte("): "))
	if !ok {
		return Record{}, errRecord
	}
	when, serial, ok := strings.Cut(string(stamp), ":")
	sec, ms, dot := strings.Cut(when, ".")
	if !ok || !dot {
		return Record{}, errRecord
	}
	n, nerr := strconv.ParseUint(serial, 10, 64)
	s, serr := strconv.ParseInt(sec, 10, 40)
	m, merr := strconv.ParseUint(ms, 10, 10)
	if nerr != nil || serr != nil || merr != nil || s < 0 || m > 999 {
		return Record{}, errRecord
	}
	return Record{typ, time.UnixMilli(s*1000 + int64(m)), n, string(text)}, nil
}

// chosen are the fields whose text a program chooses: in quotes, or in
// hexadecimal.
var chosen = map[string]bool{"path": true, "exe": true, "comm": true, "ocomm": true, "name": true, "dev": true}

// Field returns the value of the first field called name, or "" if there is
// none. It may hold any bytes where a program chose it.
func (r Record) Field(name string) string {
	for rest := r.text; rest != ""; {
		rest = strings.TrimLeft(rest, " ")
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return ""
		}
		if _, word, spaced := cutLast(key); spaced { // words that are no field
			key = word
		}
		value, quoted := "", strings.HasPrefix(after, `"`)
		if quoted {
			value, rest, _ = strings.Cut(after[1:], `"`)
		} else {
			value, rest, _ = strings.Cut(after, " ")
		}
		if key != name {
			continue
		}
		if !quoted && chosen[name] {
			if text, err := hex.DecodeString(value); err == nil {
				return string(text)
			}
		}
		return value
	}
	return ""
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, ' ')
	return s[:max(i, 0)], s[i+1:], i >= 0
}

// Int returns a field that is a number in decimal, or -1 if there is none.
func (r Record) Int(name string) int {
	n, err := strconv.Atoi(r.Field(name))
	if err != nil {
		return -1
	}
	return n
}
