package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/specs/settings"
)

var logCommand = &cli.Command{
	Name:      "log",
	Usage:     "show what a sandbox did",
	ArgsUsage: "[-f] ID",
	Flags:     []cli.Flag{jsonFlag, &cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on as it happens"}},
	Action: func(c *cli.Context) error {
		if err := wants(c, 1, 1); err != nil {
			return err
		}
		s, running, err := findLog(c.Args().First())
		if err != nil {
			return err
		}
		show := showText
		if c.Bool("json") {
			show = showRaw
		}
		if !c.Bool("follow") || !running {
			return s.readLog(func(line []byte) error { return show(c.App.Writer, line) })
		}
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		return s.followLog(ctx, 0, func(line []byte) error { return show(c.App.Writer, line) })
	},
}

// findLog is find, also for a sandbox that has ended: its log stays. running
// says whether there may be more to come.
func findLog(id string) (s *sandbox, running bool, err error) {
	s, err = find(id)
	if err == nil {
		return s, true, nil
	}
	set, serr := settings.Load()
	if serr != nil || id == "" || strings.ContainsAny(id, "/*?[\\") {
		return nil, false, err
	}
	logs, gerr := filepath.Glob(filepath.Join(set.LogDir, id+"*.jsonl"))
	if gerr != nil || len(logs) == 0 {
		return nil, false, err
	}
	if len(logs) > 1 {
		return nil, false, fmt.Errorf("cannot choose the log of sandbox %q: %d logs match", id, len(logs))
	}
	return &sandbox{"", &control.Sandbox{ID: id, AuditLog: logs[0]}, set}, false, nil
}

// readLog passes on the lines of this sandbox. The log may hold others of the
// same name before it: each begins with a segment line.
func (s *sandbox) readLog(line func([]byte) error) error {
	var begin []byte // nil: its file is not kept any more
	err := s.eachLine(func(text []byte) error {
		if strings.Contains(string(text), `"kind":"`+audit.KindSegment+`"`) && kind(text) == audit.KindSegment {
			begin = text
		}
		return nil
	})
	if err != nil {
		return err
	}
	begun := begin == nil
	return s.eachLine(func(text []byte) error {
		if begun = begun || bytes.Equal(text, begin); !begun {
			return nil
		}
		return line(text)
	})
}

// eachLine passes on every line of the log, those of its older files first.
func (s *sandbox) eachLine(line func([]byte) error) error {
	f, err := audit.OpenParts(s.AuditLog)
	if err != nil {
		return err
	}
	defer f.Close()
	return eachLine(f, line)
}

// kind is what a line says of the sandbox, or "" for one about a connection.
func kind(text []byte) string {
	var c audit.Change
	_ = json.Unmarshal(text, &c) // a line that is none has no kind
	return c.Unmapped.Kind
}

// followLog passes on the lines behind number after as the gateway streams them,
// until the sandbox ends or ctx is done.
func (s *sandbox) followLog(ctx context.Context, after uint64, line func([]byte) error) error {
	resp, err := s.do(ctx, "GET", fmt.Sprintf("/v1/events?after=%d", after), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := eachLine(resp.Body, line); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// eachLine passes on whole lines: what has no end yet is being written.
func eachLine(r io.Reader, line func([]byte) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		text, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the audit log: %w", err)
		}
		if err := line(text); err != nil {
			return err
		}
	}
}

func showRaw(w io.Writer, line []byte) error {
	_, err := w.Write(line)
	return err
}

// showText prints one line for people.
func showText(w io.Writer, line []byte) error {
	var base audit.Base
	if err := json.Unmarshal(line, &base); err != nil {
		_, err := fmt.Fprintf(w, "%s\n", cell("not a line of the log: "+string(line)))
		return err
	}
	text := base.Message
	var n audit.Network
	var d audit.Denied
	if base.ClassUID == 4001 && json.Unmarshal(line, &n) == nil {
		text = networkText(&n)
	} else if (base.ClassUID == 1001 || base.ClassUID == 1003) && json.Unmarshal(line, &d) == nil {
		text = deniedText(&d)
	} else if k := kind(line); k != "" {
		text = fmt.Sprintf("%-7s %s", k, text)
	}
	text = strings.ReplaceAll(strings.TrimRight(text, " \n"), "\n", "\n    ") // what follows is no line of the log
	if base.SeverityID >= audit.High {
		text = loud(w, printable(text))
	} else {
		text = printable(text)
	}
	_, err := fmt.Fprintf(w, "%s  %s\n", time.UnixMilli(base.Time).Format(time.DateTime), text)
	return err
}

// networkText is one decision: what, where, by which rule, who.
func networkText(n *audit.Network) string {
	words := []string{fmt.Sprintf("%-7s", n.Unmapped.Verdict), place(n.Dst) + packet(n.Connection)}
	if isInbound(n) {
		from := "outside"
		if n.Src != nil {
			from = place(n.Src)
		}
		words = append(words, "from "+from)
	}
	if n.Unmapped.Would != "" {
		words = append(words, "(not enforced: "+n.Unmapped.Would+")")
	}
	if n.Unmapped.Reason != "" {
		words = append(words, n.Unmapped.Reason)
	}
	if n.Count > 1 {
		words = append(words, fmt.Sprintf("(%d times)", n.Count))
	}
	if n.Rule != nil {
		words = append(words, "by "+n.Rule.Name)
	}
	if n.Traffic != nil {
		words = append(words, fmt.Sprintf("sent %d got %d bytes", n.Traffic.Out, n.Traffic.In))
	}
	if n.Duration > 0 {
		words = append(words, "in "+(time.Duration(n.Duration)*time.Millisecond).String())
	}
	if n.Actor != nil {
		doubt := ""
		if n.Unmapped.Unsure != "" {
			doubt = "?"
		}
		words = append(words, processName(n.Actor)+doubt)
	}
	if n.Unmapped.Detail != "" {
		words = append(words, "-- "+n.Unmapped.Detail)
	}
	return cell(strings.Join(words, " "))
}

// isInbound tells whether somebody outside opened the connection.
func isInbound(n *audit.Network) bool {
	return n.Connection != nil && n.Connection.DirectionID == audit.Inbound
}

// deniedText is one denial of layer 1 or 2: the right and the path, or the
// system call, and who. Text that a program chose is quoted where it could pass
// for another word.
func deniedText(d *audit.Denied) string {
	if d.Count > 0 {
		return cell(fmt.Sprintf("%-7s %s (%s)", "denied", d.Message, d.Unmapped.Layer))
	}
	words := []string{fmt.Sprintf("%-7s", "denied")}
	switch {
	case d.File != nil:
		words = append(words, strings.ReplaceAll(strings.Join(d.Unmapped.Rights, ","), "fs.", ""), quoted(d.File.Path))
	case d.Kernel != nil && d.Kernel.SystemCall != "":
		words = append(words, "system call "+quoted(d.Kernel.SystemCall))
	case d.Kernel != nil:
		words = append(words, quoted(d.Kernel.Name))
	}
	if d.Actor != nil {
		words = append(words, "to "+processName(d.Actor))
		if d.Unmapped.OrChild {
			words = append(words, "or a child")
		}
	}
	return cell(strings.Join(append(words, "("+d.Unmapped.Layer+")"), " "))
}

// quoted is s, in quotes if it holds more than one printable word.
func quoted(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || strings.ContainsAny(s, " ") || s == "" {
		return q
	}
	return s
}

// processName is an executable, or the name that a process gave itself, and its
// number.
func processName(a *audit.Actor) string {
	if a.Process.IsZero() {
		return a.AppName
	}
	name := a.Process.Name
	if a.Process.File != nil {
		name = a.Process.File.Path
	}
	return fmt.Sprintf("%s[%d]", cmp.Or(name, "?"), a.Process.PID)
}

// packet is "/udp" and the like for what is no connection and no question.
func packet(c *audit.Connection) string {
	if c == nil || c.ProtocolName == "tcp" {
		return ""
	}
	if _, ok := control.ProtoNumber(c.ProtocolName); !ok {
		return ""
	}
	return "/" + c.ProtocolName
}

func place(e *audit.Endpoint) string {
	if e == nil || *e == (audit.Endpoint{UID: e.UID}) { // of many
		return "?"
	}
	return cmp.Or(e.Hostname, e.IP, "?") + ":" + strconv.Itoa(int(e.Port))
}
