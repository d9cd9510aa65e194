package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"golang.org/x/net/websocket"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: client h2|grpc|ws URL")
		os.Exit(2)
	}
	speak := map[string]func(string) error{"h2": h2, "grpc": grpc, "ws": ws}[os.Args[1]]
	if speak == nil {
		fmt.Fprintln(os.Stderr, "client: cannot speak", os.Args[1])
		os.Exit(2)
	}
	if err := speak(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func h2(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(resp.Proto, resp.StatusCode, strings.TrimSpace(string(body)))
	return err
}

// grpc is a bidirectional stream as gRPC has it over HTTP/2: messages behind a
// flag and four bytes of length, and the status in the trailer.
func grpc(url string) error {
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", url+"/test.Echo/Stream", r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.Header.Get("Content-Type") != "application/grpc" {
		return fmt.Errorf("no gRPC server: %s, %s", resp.Proto, resp.Status)
	}
	for _, text := range []string{"one", "two", "three"} {
		if _, err := w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...)); err != nil {
			return err
		}
		var head [5]byte
		if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
			return err
		}
		said := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 64))
		if _, err := io.ReadFull(resp.Body, said); err != nil {
			return err
		}
		fmt.Println(string(said))
	}
	w.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if status := resp.Trailer.Get("Grpc-Status"); status != "0" {
		return errors.New("the stream ended with status " + status)
	}
	return nil
}

func ws(url string) error {
	c, err := websocket.Dial(url, "", "http://localhost/")
	if err != nil {
		return err
	}
	defer c.Close()
	for _, text := range []string{"one", "two", "three"} {
		var said string
		if err := websocket.Message.Send(c, text); err != nil {
			return err
		}
		if err := websocket.Message.Receive(c, &said); err != nil {
			return err
		}
		fmt.Println(said)
	}
	return nil
}
