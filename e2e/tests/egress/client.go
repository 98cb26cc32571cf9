// Reaches a server by Go's own client, which looks names up by itself.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	ca, err := os.ReadFile("ca.pem")
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	reply, err := client.Get("https://web.far.test/hello.txt")
	if err != nil {
		panic(err)
	}
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		panic(err)
	}
	fmt.Print(string(body))
}
