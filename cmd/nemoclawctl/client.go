package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
)

// patience is how long a gateway may take to answer: a decision waits for the
// worker to put it into force.
const patience = 10 * time.Second

// client returns one that speaks to the sandbox's gateway, whatever the URL's
// host.
func (s *sandbox) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return control.Dial("unix", control.Gateway(s.dir), control.ControlSocket)
		},
	}}
}

// call asks the gateway; in and out may be nil.
func (s *sandbox) call(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := s.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(out); err != nil {
		return fmt.Errorf("cannot understand the gateway of %s: %w", s.ID, err)
	}
	return nil
}

// text asks the gateway for what is no JSON.
func (s *sandbox) text(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := s.do(ctx, "GET", path, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("cannot read from the gateway of %s: %w", s.ID, err)
	}
	return string(b), nil
}

func (s *sandbox) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := s.client().Do(req)
	if err != nil {
		return nil, s.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f control.Fault
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("cannot understand the gateway of %s: it answered %s", s.ID, resp.Status)
	}
	return nil, hinted{errors.New(strings.TrimSpace(f.Error)), f.Hint}
}

// unreachable says what it means that a gateway does not answer.
func (s *sandbox) unreachable(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	hint := "the sandbox has ended; its audit log is " + s.AuditLog
	if s.alive() {
		hint = "while its gateway is down the sandbox is refused every connection"
	}
	return hinted{fmt.Errorf("cannot reach the gateway of %s: %w", s.ID, err), hint}
}

// eachGateway asks the gateway of the sandbox that a command line names, or that
// of each; containers of a pod have one. Of several one that does not answer is
// only said to be down.
func eachGateway(c *cli.Context, ask func(*sandbox) error) error {
	if err := wants(c, 0, 1); err != nil {
		return err
	}
	sandboxes, err := chosen(c.Args().First())
	if err != nil {
		return err
	}
	asked := map[string]bool{}
	for _, s := range sandboxes {
		gateway, err := filepath.EvalSymlinks(control.Gateway(s.dir))
		if err == nil && asked[gateway] {
			continue
		}
		asked[gateway] = true
		if err := ask(s); err != nil && c.Args().Present() {
			return err
		} else if err != nil {
			s.warnIfDown(c)
		}
	}
	return nil
}

// warnIfDown says of a sandbox that could not be asked why a list lacks it: it
// runs without a gateway. One that has ended has nothing to tell.
func (s *sandbox) warnIfDown(c *cli.Context) {
	if s.alive() {
		fmt.Fprintf(c.App.ErrWriter, "%s: its gateway is down, and every connection is refused; nemoclawctl repair %s starts another\n", short(s.ID), short(s.ID))
	}
}

// alive reports whether the container's init still runs.
func (s *sandbox) alive() bool {
	start, err := control.StartTime(s.InitPID)
	return s.InitPID > 0 && err == nil && start == s.InitStart
}
