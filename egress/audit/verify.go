package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Fault is one place where the chain does not hold.
type Fault struct {
	File string `json:"file,omitempty"` // of a log's older files; empty: the log itself
	Line int    `json:"line"`           // in the file, from 1
	Msg  string `json:"message"`
}

func (f Fault) String() string { return fmt.Sprintf("line %d: %s", f.Line, f.Msg) }

// Report is what Verify found.
type Report struct {
	Lines    int      `json:"lines"`
	Segments int      `json:"segments"` // sandboxes
	Faults   []Fault  `json:"faults"`   // none: the log is what was written
	Notes    []string `json:"notes"`    // accidents that the log itself tells of
	Open     bool     `json:"open"`     // the last sandbox has not ended
	Begin    Head     `json:"begin"`    // what the first line is chained to: where an older file ends
	Head     Head     `json:"head"`     // of what was read
}

// link is the part of a line that the chain is made of.
type link struct {
	seq  uint64
	prev string
	kind string
	torn string
	msg  string
}

// errUnfinished comes with the bytes behind the last line feed.
var errUnfinished = errors.New("unfinished line")

// readLine returns the next line without its line feed, io.EOF at the end, or
// errUnfinished with what stands behind the last line feed. A line longer than
// MaxLine is returned cut: it is none of ours.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if room := MaxLine + 1 - len(line); room > 0 {
			line = append(line, part[:min(len(part), room)]...)
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte{'\n'}), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return line, errUnfinished
		default:
			return nil, err
		}
	}
}

func parseLink(line []byte) (link, bool) {
	var v struct {
		Message  string `json:"message"`
		Metadata struct {
			Sequence uint64 `json:"sequence"`
		} `json:"metadata"`
		Unmapped struct {
			Prev string `json:"prev"`
			Kind string `json:"kind"`
			Torn string `json:"torn"`
		} `json:"unmapped"`
	}
	if len(line) >= MaxLine || json.Unmarshal(line, &v) != nil || v.Metadata.Sequence == 0 || len(v.Unmapped.Prev) != len(genesis) {
		return link{}, false
	}
	return link{v.Metadata.Sequence, v.Unmapped.Prev, v.Unmapped.Kind, v.Unmapped.Torn, v.Message}, true
}

// Verify reads a whole log and compares it with its own chain and with head.
// A nil head leaves cut-off lines at the end, and a changed last line, unseen:
// that is a fault of its own. The error is r's.
func Verify(r io.Reader, head *Head) (*Report, error) {
	v := verifier{rep: &Report{Begin: Head{Hash: genesis}, Head: Head{Hash: genesis}}}
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, errUnfinished) {
			v.rep.Lines++
			v.flush()
			v.fault("the last line is unfinished")
			break
		}
		if err != nil {
			return v.rep, fmt.Errorf("cannot read the audit log: %w", err)
		}
		v.line(line)
	}
	v.flush()
	v.compare(head)
	return v.rep, nil
}

type verifier struct {
	rep   *Report
	alien *alien // what stands before, which is none of ours; perhaps it is sealed
}

// alien is a run of lines that are none of ours, joined by line feeds.
type alien struct {
	line int // the first
	text []byte
}

func (v *verifier) fault(format string, args ...any) {
	v.rep.Faults = append(v.rep.Faults, Fault{Line: v.rep.Lines, Msg: fmt.Sprintf(format, args...)})
}

// flush reports an alien line that no seal followed.
func (v *verifier) flush() {
	if v.alien == nil {
		return
	}
	v.rep.Faults = append(v.rep.Faults, Fault{Line: v.alien.line, Msg: "not a line of this log"})
	v.rep.Head.Offset += int64(len(v.alien.text)) + 1
	v.alien = nil
}

func (v *verifier) line(line []byte) {
	v.rep.Lines++
	k, ok := parseLink(line)
	if !ok {
		v.strange(line)
		return
	}
	end := &v.rep.Head
	if v.alien != nil && k.kind == KindRecovered && k.torn == hash(v.alien.text) && k.prev == k.torn {
		v.rep.Notes = append(v.rep.Notes, fmt.Sprintf("line %d: unfinished, and sealed by line %d", v.alien.line, v.rep.Lines))
		end.Offset += int64(len(v.alien.text)) + 1
		end.Hash = k.torn
		v.alien = nil
	}
	v.flush()
	if v.rep.Lines == 1 && k.kind == KindContinued && k.seq > 1 {
		end.Sequence, end.Hash = k.seq-1, k.prev
		v.rep.Begin, v.rep.Open = *end, true
		v.rep.Notes = append(v.rep.Notes, continues(*end))
	}
	v.chain(k)
	v.tell(k)
	end.Sequence = k.seq
	end.Hash = hash(line)
	end.Length = int64(len(line)) + 1
	end.Offset += end.Length
}

// strange keeps a line that is none of ours until it is known whether it was
// sealed. Nothing larger than one write was ever sealed.
func (v *verifier) strange(line []byte) {
	if v.alien != nil && len(v.alien.text) > 4*MaxLine {
		v.flush()
	}
	if v.alien == nil {
		v.alien = &alien{line: v.rep.Lines, text: bytes.Clone(line)}
		return
	}
	v.alien.text = append(append(v.alien.text, '\n'), line...)
}

// chain compares a line with the one before it.
func (v *verifier) chain(k link) {
	want := v.rep.Head.Sequence + 1
	switch {
	case k.seq > want && k.seq-want == 1:
		v.fault("line number %d is missing before it", want)
	case k.seq > want:
		v.fault("line numbers %d to %d are missing before it", want, k.seq-1)
	case k.seq < want:
		v.fault("line number %d stands where %d belongs: doubled, moved or inserted", k.seq, want)
	case k.prev != v.rep.Head.Hash:
		v.fault("the line before it is not the one that was written there")
	}
}

// tell counts sandboxes and passes on what the log says about itself.
func (v *verifier) tell(k link) {
	switch k.kind {
	case KindSegment:
		if v.rep.Open {
			v.rep.Notes = append(v.rep.Notes, fmt.Sprintf("line %d: the sandbox before it ended without closing its part of the log", v.rep.Lines))
		}
		v.rep.Segments++
		v.rep.Open = true
	case KindEnd:
		v.rep.Open = false
	case KindRecovered:
		v.rep.Notes = append(v.rep.Notes, fmt.Sprintf("line %d: %s", v.rep.Lines, k.msg))
	}
}

// compare holds the end that was reached against the one that was kept.
func (v *verifier) compare(head *Head) {
	got := v.rep.Head
	switch {
	case head == nil && v.rep.Lines == 0:
	case head != nil && v.rep.Lines == 0 && head.Offset == 0: // it was begun, and nothing written yet
		v.rep.Begin, v.rep.Head = *head, *head
	case head == nil:
		v.fault("the head file is missing: lines may have been cut off")
	case *head == got:
	case head.Sequence > got.Sequence:
		v.fault("line numbers %d to %d are cut off", got.Sequence+1, head.Sequence)
	case head.Sequence < got.Sequence:
		v.fault("line numbers %d to %d were added", head.Sequence+1, got.Sequence)
	default:
		v.fault("the last line is not the one that was written there")
	}
}

// VerifyFile verifies a log and its head. While a gateway writes the log, its
// head is followed up to where it was at the beginning.
func VerifyFile(file string) (*Report, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read the audit log: %w", err)
	}
	defer f.Close()
	// Without a writer the file must end where the head says.
	live := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
	head, err := ReadHead(file)
	fi, serr := f.Stat()
	if !live {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	if err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, fmt.Errorf("cannot read the audit log: %w", serr)
	}
	limit := fi.Size()
	if live && head != nil {
		limit = min(limit, head.Offset)
	}
	return Verify(io.LimitReader(f, limit), head)
}
